"""Data preparation: VoxCeleb, or any folder laid out like it, closed set.

Reads ``<data_folder>/wav/<speaker>/<session>/<utterance>.wav``; the speakers
of all splits are the same.

Download: http://www.robots.ox.ac.uk/~vgg/data/voxceleb/
"""

import csv
import hashlib
import os
from collections import defaultdict
from pathlib import Path

from speechbrain.dataio.audio_io import info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SPLITS = ("train", "dev", "test")
OFFICIAL = "iden_split.txt"


def prepare_identification(
    data_folder,
    save_folder,
    split_ratio=(70, 10, 20),
    min_utterances=10,
    max_speakers=None,
    skip_prep=False,
):
    """Writes ``train.csv``, ``dev.csv`` and ``test.csv``.

    Where the official ``iden_split.txt`` is in the folder it counts;
    otherwise the utterances of each speaker are divided by a hash of their
    names.

    Arguments
    ---------
    data_folder : str
        Folder with ``wav/``.
    save_folder : str
        Where the CSV files go.
    split_ratio : tuple of int
        Share of each speaker's utterances, without that list.
    min_utterances : int
        Speakers with fewer are left out, without that list.
    max_speakers : int, optional
        At most so many speakers, the first by name, without that list.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    FileNotFoundError
        If there are no recordings.
    """
    paths = [Path(save_folder) / f"{split}.csv" for split in SPLITS]
    if skip_prep or all(path.is_file() for path in paths):
        return
    os.makedirs(save_folder, exist_ok=True)
    if (Path(data_folder) / OFFICIAL).is_file():
        splits = read_official(Path(data_folder) / OFFICIAL)
    else:
        found = find_utterances(data_folder, min_utterances)
        found = dict(sorted(found.items())[:max_speakers])
        splits = divide(found, split_ratio)
    for split, path in zip(SPLITS, paths):
        write_list(path, data_folder, splits[split])


def read_official(path):
    """Reads the list: 1 is train, 2 is dev, 3 is test."""
    splits = {split: [] for split in SPLITS}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.strip():
            number, utterance = line.split()
            splits[SPLITS[int(number) - 1]].append(utterance)
    return splits


def find_utterances(data_folder, min_utterances):
    """Lists the utterances of every speaker that has enough of them."""
    root = Path(data_folder) / "wav"
    found = defaultdict(list)
    for path in sorted(root.glob("*/*/*.wav")):
        found[path.parts[-3]].append(path.relative_to(root).as_posix())
    found = {
        s: utts for s, utts in found.items() if len(utts) >= min_utterances
    }
    if not found:
        raise FileNotFoundError(
            f"No speaker in {root} has {min_utterances} recordings: expected "
            "<speaker>/<session>/*.wav. Check data_folder."
        )
    return found


def divide(utterances, split_ratio):
    """Divides the utterances of each speaker.

    Example
    -------
    >>> splits = divide({"a": [str(n) for n in range(10)]}, (70, 10, 20))
    >>> [len(splits[split]) for split in SPLITS]
    [7, 1, 2]
    """
    splits = {split: [] for split in SPLITS}
    total = sum(split_ratio)
    for utts in utterances.values():
        utts = sorted(utts, key=lambda u: hashlib.sha1(u.encode()).digest())
        first = len(utts) * split_ratio[0] // total
        second = first + len(utts) * split_ratio[1] // total
        parts = utts[:first], utts[first:second], utts[second:]
        for split, part in zip(SPLITS, parts):
            splits[split] += part
    return splits


def write_list(path, data_folder, utterances):
    """Writes a list; the label of an utterance is its speaker."""
    rows = []
    for utterance in utterances:
        wav = os.path.abspath(os.path.join(data_folder, "wav", utterance))
        audio = info(wav)
        seconds = audio.num_frames / audio.sample_rate
        speaker = utterance.split("/")[0]
        rows.append([utterance, seconds, wav, speaker, speaker])
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id", "label"])
        writer.writerows(rows)
    speakers = len({row[3] for row in rows})
    logger.info(f"{path}: {len(rows)} utterances, {speakers} speakers")
