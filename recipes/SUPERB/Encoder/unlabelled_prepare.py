"""Data preparation: speech without labels, from any folders.

Writes ``train.csv``, ``dev.csv`` and ``test.csv``. No speaker is in two of
them, where the speaker shows in the path.
"""

import csv
import glob
import hashlib
import os
import re
from pathlib import Path

from speechbrain.dataio.audio_io import info
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

# Speech Commands: <speaker>_nohash_<take>.wav; LibriSpeech and VoxCeleb:
# <speaker>/<chapter or session>/<utterance>
SPEAKER_PATTERNS = (r"([^/]+)_nohash_[^/]*$", r"([^/]+)/[^/]+/[^/]+$")


def prepare_unlabelled(
    audio_patterns,
    save_folder,
    dev_share=0.05,
    test_share=0.05,
    exclude_speakers=(),
    exclude_recordings=(),
    speaker_patterns=SPEAKER_PATTERNS,
    min_seconds=0.4,
    skip_prep=False,
):
    """Writes one CSV file for each split.

    Arguments
    ---------
    audio_patterns : list of str
        Files, with wildcards: ``/data/LibriSpeech/train-*/*/*/*.flac``; ``**``
        stands for any folders.
    save_folder : str
        Where the CSV files go.
    dev_share, test_share : float
        Parts of the speakers that are held out.
    exclude_speakers : list of str
        Speakers that are left out: names, CSV files with a column ``spk_id``,
        or lists of trials. Give the test lists of all tasks.
    exclude_recordings : list of str
        CSV files with a column ``wav``; these are left out.
    speaker_patterns : list of str
        Regular expressions, whose group is the speaker in a path; the first
        that matches counts.
    min_seconds : float
        Shorter recordings are left out.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    FileNotFoundError
        If no file matches a pattern.
    ValueError
        If a path has no speaker, or a split would be empty.
    """
    if skip_prep:
        return
    os.makedirs(save_folder, exist_ok=True)
    speakers = read_speakers(exclude_speakers)
    recordings = {
        os.path.realpath(row["wav"])
        for path in exclude_recordings
        for row in _read_csv(path)
    }
    rows = {"train": [], "dev": [], "test": []}
    for path in find_audio(audio_patterns):
        speaker = speaker_of(path, speaker_patterns)
        if speaker in speakers or os.path.realpath(path) in recordings:
            continue
        audio = info(path)
        seconds = audio.num_frames / audio.sample_rate
        if seconds >= min_seconds:
            split = split_of(speaker, dev_share, test_share)
            rows[split].append([path, seconds, path, speaker])
    for split, chosen in rows.items():
        if not chosen:
            raise ValueError(
                f"No recording is left for {split}: there are too few "
                "speakers for dev_share and test_share, or exclude_speakers "
                "names all of them."
            )
        _write(Path(save_folder) / f"{split}.csv", chosen)


def find_audio(patterns):
    """Lists the files; each pattern must match some."""
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = glob.glob(pattern, recursive=True)
        if not matches:
            raise FileNotFoundError(f"audio_patterns: no file is {pattern}")
        found.update(os.path.abspath(path) for path in matches)
    return sorted(found)


def speaker_of(path, patterns=SPEAKER_PATTERNS):
    """Returns the speaker of a recording.

    Example
    -------
    >>> speaker_of("/data/up/0a7c2a8d_nohash_0.wav")
    '0a7c2a8d'
    >>> speaker_of("/data/LibriSpeech/dev-clean/84/121123/84-121123-0001.flac")
    '84'
    """
    for pattern in patterns:
        match = re.search(pattern, Path(path).as_posix())
        if match is not None:
            return match.group(1)
    raise ValueError(f"{path} matches none of speaker_patterns {patterns}")


def split_of(speaker, dev_share, test_share):
    """Returns the split of a speaker: always the same one.

    Example
    -------
    >>> split_of("84", 0, 0), split_of("84", 1, 0), split_of("84", 0, 1)
    ('train', 'dev', 'test')
    """
    digest = hashlib.sha1(speaker.encode()).digest()
    position = int.from_bytes(digest[:4], "big") / 2**32
    if position < test_share:
        return "test"
    return "dev" if position < test_share + dev_share else "train"


def read_speakers(sources):
    """Collects speakers out of names, CSV files and lists of trials."""
    speakers = set()
    for source in sources:
        if not str(source).endswith((".csv", ".txt")):
            speakers.add(str(source))
        elif str(source).endswith(".csv"):
            speakers.update(row["spk_id"] for row in _read_csv(source))
        else:
            fields = Path(source).read_text(encoding="utf-8").split()
            speakers.update(f.split("/")[0] for f in fields if "/" in f)
    return speakers


def _read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "spk_id"])
        writer.writerows(rows)
    hours = sum(row[1] for row in rows) / 3600
    logger.info(f"{path}: {len(rows)} recordings, {hours:.2f} h")
