"""Data preparation: VoxCeleb, or any folder laid out like it.

Reads ``<data_folder>/wav/<speaker>/<session>/<utterance>.wav`` and a list of
trials, ``<label> <enrolment wav> <test wav>`` in each line, and writes the
lists that training and verification read.

Download: http://www.robots.ox.ac.uk/~vgg/data/voxceleb/
"""

import csv
import os
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from speechbrain.dataio.audio_io import info
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

COLUMNS = ("ID", "duration", "wav", "start", "stop", "spk_id")


def prepare_voxceleb(
    data_folder,
    save_folder,
    verification_file,
    dev_speakers=40,
    dev_trials=20000,
    dev_min_utterances=2,
    dev_pattern="",
    max_seconds=None,
    seed=1986,
    skip_prep=False,
):
    """Writes ``train.csv``, ``dev.csv``, ``dev_trials.txt`` and ``test.csv``.

    Speakers of the verification list are in no other file. Of the rest, some
    are set aside, because a search needs trials over speakers that the model
    has never seen: the error of training speakers says nothing.

    Arguments
    ---------
    data_folder : str
        Folder with ``wav/``.
    save_folder : str
        Where the lists go.
    verification_file : str
        The list of trials of the test.
    dev_speakers : int
        Speakers set aside for validation.
    dev_trials : int
        Trials over them: all pairs of one speaker, up to half this number,
        and as many pairs of two, drawn at random.
    dev_min_utterances : int
        A speaker with fewer is not set aside.
    dev_pattern : str
        Only speakers whose name begins like this are set aside.
    max_seconds : float, optional
        Dev and test utterances are cut to this.
    seed : int
        Seed of the choice.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    FileNotFoundError
        If there are no recordings, or one of the trials has none.
    """
    if skip_prep:
        return
    os.makedirs(save_folder, exist_ok=True)
    csv_files = [
        Path(save_folder) / f"{s}.csv" for s in ("train", "dev", "test")
    ]
    if all(path.exists() for path in csv_files):
        logger.info("Preparation was completed before, skipping.")
        return
    utterances = find_utterances(data_folder)
    tested = read_trials(verification_file)
    test = sorted({utt for _, *pair in tested for utt in pair})
    missing = [utt for utt in test if not _path(data_folder, utt).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{verification_file} names {missing[0]}, which is not in "
            f"{data_folder}/wav ({len(missing)} of {len(test)} are missing)."
        )
    test_speakers = {utt.split("/")[0] for utt in test}
    rng = random.Random(seed)
    eligible = sorted(
        spk
        for spk, utts in utterances.items()
        if spk not in test_speakers
        and spk.startswith(dev_pattern)
        and len(utts) >= dev_min_utterances
    )
    chosen = sorted(rng.sample(eligible, min(dev_speakers, len(eligible))))
    train = [
        utt
        for spk, utts in sorted(utterances.items())
        if spk not in test_speakers and spk not in chosen
        for utt in utts
    ]
    dev = [utt for spk in chosen for utt in utterances[spk]]
    _write_trials(
        Path(save_folder) / "dev_trials.txt",
        make_trials({spk: utterances[spk] for spk in chosen}, dev_trials, rng),
    )
    for path, utts, limit in zip(
        csv_files, (train, dev, test), (None, max_seconds, max_seconds)
    ):
        _write(path, data_folder, utts, limit)


def find_utterances(data_folder):
    """Lists the recordings of every speaker, relative to ``wav/``."""
    root = Path(data_folder) / "wav"
    found = defaultdict(list)
    for path in sorted(root.glob("*/*/*.wav")):
        found[path.parts[-3]].append(path.relative_to(root).as_posix())
    if not found:
        raise FileNotFoundError(
            f"No recordings in {root}: expected <speaker>/<session>/*.wav."
        )
    return dict(found)


def read_trials(path):
    """Reads a list of trials: label, enrolment and test utterance."""
    with open(path, encoding="utf-8") as file:
        return [line.split() for line in file if line.strip()]


def make_trials(utterances, count, rng):
    """Draws trials: half of one speaker (at most all pairs), half of two."""
    same = [
        ("1", *pair)
        for utts in utterances.values()
        for pair in combinations(utts, 2)
    ]
    same = rng.sample(same, min(count // 2, len(same)))
    speakers = sorted(utterances)
    different = set()
    while len(speakers) > 1 and len(different) < count - count // 2:
        first, second = rng.sample(speakers, 2)
        pair = (rng.choice(utterances[first]), rng.choice(utterances[second]))
        different.add(("0", *pair))
    return [*sorted(same), *sorted(different)]


def _path(data_folder, utterance):
    return Path(data_folder) / "wav" / utterance


def _write_trials(path, trials):
    text = "".join(" ".join(trial) + "\n" for trial in trials)
    path.write_text(text, encoding="utf-8")


def _write(path, data_folder, utterances, max_seconds):
    """Writes a list; utterances are named as in the trials."""
    partial = path.with_suffix(".part")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for utt in tqdm(utterances, desc=path.stem, dynamic_ncols=True):
            wav = _path(data_folder, utt)
            found = info(str(wav))
            frames = found.num_frames
            if max_seconds is not None:
                frames = min(frames, int(max_seconds * found.sample_rate))
            seconds = found.num_frames / found.sample_rate
            writer.writerow((utt, seconds, wav, 0, frames, utt.split("/")[0]))
    os.replace(partial, path)
