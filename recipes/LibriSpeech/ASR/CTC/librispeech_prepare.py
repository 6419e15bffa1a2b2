"""Data preparation: LibriSpeech, full or any part of it.

Reads the official layout, ``<split>/<speaker>/<chapter>/*.flac`` beside
``<speaker>-<chapter>.trans.txt``, and writes one CSV file per split.

Download: http://www.openslr.org/12
"""

import csv
import os
from pathlib import Path

from speechbrain.dataio.audio_io import info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


def prepare_librispeech(
    data_folder,
    save_folder,
    tr_splits=("train-clean-100",),
    dev_splits=("dev-clean",),
    te_splits=("test-clean", "test-other"),
    skip_prep=False,
):
    """Writes ``<split>.csv`` for each split and ``train.csv`` for all of train.

    Arguments
    ---------
    data_folder : str
        Folder that holds the splits, e.g. ``/path/to/LibriSpeech``.
    save_folder : str
        Where the CSV files go.
    tr_splits, dev_splits, te_splits : list of str
        Names of the splits.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    FileNotFoundError
        If a split is not there.
    """
    if skip_prep:
        return
    os.makedirs(save_folder, exist_ok=True)
    train_rows = []
    for split in dict.fromkeys([*tr_splits, *dev_splits, *te_splits]):
        path = Path(save_folder) / f"{split}.csv"
        if path.exists():
            logger.info("%s exists, not made again", path)
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = _read_split(Path(data_folder) / split)
            _write(path, rows)
        if split in tr_splits:
            train_rows += rows
    _write(Path(save_folder) / "train.csv", train_rows)


def _read_split(folder):
    """Returns one row per utterance of a split."""
    texts = sorted(folder.glob("*/*/*.trans.txt"))
    if not texts:
        raise FileNotFoundError(
            f"{folder} has no <speaker>/<chapter>/*.trans.txt: is "
            "--data_folder the folder that holds the LibriSpeech splits?"
        )
    rows = []
    for path in texts:
        for line in path.read_text(encoding="utf-8").splitlines():
            utterance, _, words = line.partition(" ")
            wav = path.parent / f"{utterance}.flac"
            audio = info(str(wav))
            rows.append(
                {
                    "ID": utterance,
                    "duration": audio.num_frames / audio.sample_rate,
                    "wav": str(wav),
                    "spk_id": utterance.rpartition("-")[0],
                    "wrd": words,
                }
            )
    return rows


def _write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    hours = sum(float(row["duration"]) for row in rows) / 3600
    logger.info("%s: %d utterances, %.2f h", path, len(rows), hours)
