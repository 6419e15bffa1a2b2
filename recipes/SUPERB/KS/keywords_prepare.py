"""Data preparation: Speech Commands, one word in each recording.

Download: http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz
"""

import csv
import os
import random
from pathlib import Path

from speech_commands_prepare import SPLITS, find_clips, split_speakers
from speechbrain.dataio.audio_io import info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# Official lists; what is in neither of them is for training
LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}


def prepare_keywords(
    data_folder,
    save_folder,
    words=None,
    split_ratio=(80, 8, 12),
    seed=1986,
    skip_prep=False,
):
    """Writes ``train.csv``, ``dev.csv`` and ``test.csv``.

    With the official lists in the folder these are the splits. Otherwise
    speakers are divided, as for the strings of
    ``recipes/SpeechCommands/ASR/CTC``: the same ones with the same seed.

    Arguments
    ---------
    data_folder : str
        The folder with one folder per word.
    save_folder : str
        Where the CSV files go.
    words : list of str, optional
        Words to tell apart; by default all there are.
    split_ratio : tuple of int
        Share of the speakers for train, dev and test, without lists.
    seed : int
        Of that division.
    skip_prep : bool
        If True, nothing is done.
    """
    paths = [Path(save_folder) / f"{split}.csv" for split in SPLITS]
    if skip_prep or all(path.is_file() for path in paths):
        return
    os.makedirs(save_folder, exist_ok=True)
    clips = find_clips(data_folder)
    if all((Path(data_folder) / name).is_file() for name in LISTS.values()):
        split_of = _official(data_folder)
    else:
        rng = random.Random(seed)
        speakers = split_speakers(sorted(clips), split_ratio, rng)
        by_speaker = {spk: s for s, spks in speakers.items() for spk in spks}
        split_of = lambda speaker, path: by_speaker[speaker]  # noqa: E731
    rows = {split: [] for split in SPLITS}
    for speaker, spoken in clips.items():
        for word, path in spoken:
            if words is None or word in words:
                key = f"{word}/{Path(path).name}"
                wav = os.path.abspath(path)
                row = [key, _seconds(wav), wav, speaker, word]
                rows[split_of(speaker, key)].append(row)
    for split, path in zip(SPLITS, paths):
        _write(path, rows[split])


def _official(data_folder):
    """Returns what tells the split of a clip by the official lists."""
    listed = {}
    for split, name in LISTS.items():
        lines = (Path(data_folder) / name).read_text(encoding="utf-8").split()
        listed.update(dict.fromkeys(lines, split))
    return lambda speaker, path: listed.get(path, "train")


def _seconds(wav):
    audio = info(wav)
    return audio.num_frames / audio.sample_rate


def _write(path, rows):
    if not rows:
        raise ValueError(
            f"No clip is left for {path}: check data_folder and words."
        )
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "label"])
        writer.writerows(rows)
    logger.info(f"{path}: {len(rows)} clips")
