"""Data preparation: VoxCeleb, or any folder laid out like it.

Reads ``<data_folder>/wav/<speaker>/<session>/<utterance>.wav`` and a list of
trials, ``<label> <enrolment wav> <test wav>`` in each line, and writes the
lists that training and verification read.

Download: http://www.robots.ox.ac.uk/~vgg/data/voxceleb/
"""

import csv
import json
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
    dev_max_utterances=None,
    dev_prefix="",
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
    dev_max_utterances : int, optional
        Of a speaker set aside, at most so many utterances are used.
    dev_prefix : str
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
    ValueError
        If there are too few speakers to set aside, or the folder holds lists
        that were made with other arguments.
    """
    options = dict(locals())
    for key in ("save_folder", "skip_prep"):
        del options[key]
    if skip_prep or _is_done(Path(save_folder), options):
        return
    os.makedirs(save_folder, exist_ok=True)
    utterances = find_utterances(data_folder)
    test = find_test_utterances(data_folder, verification_file)
    for speaker in sorted({utt.split("/")[0] for utt in test}):
        utterances.pop(speaker, None)
    rng = random.Random(seed)
    eligible = sorted(
        spk
        for spk, utts in utterances.items()
        if spk.startswith(dev_prefix) and len(utts) >= dev_min_utterances
    )
    if not 2 <= dev_speakers <= len(eligible):
        raise ValueError(
            f"dev_speakers is {dev_speakers}: at least two are needed, of "
            f"{len(eligible)} speakers in {data_folder}/wav that are not in "
            f"{verification_file}, whose name begins with '{dev_prefix}' and "
            f"that have at least {dev_min_utterances} utterances."
        )
    dev = {
        spk: utterances.pop(spk)
        for spk in sorted(rng.sample(eligible, dev_speakers))
    }
    if dev_max_utterances is not None:
        dev = {
            spk: sorted(rng.sample(utts, min(dev_max_utterances, len(utts))))
            for spk, utts in dev.items()
        }
    _write_trials(
        Path(save_folder) / "dev_trials.txt", make_trials(dev, dev_trials, rng)
    )
    train = [utt for _, utts in sorted(utterances.items()) for utt in utts]
    valid = [utt for utts in dev.values() for utt in utts]
    for name, chosen, limit in (
        ("train", train, None),
        ("dev", valid, max_seconds),
        ("test", test, max_seconds),
    ):
        path = Path(save_folder) / f"{name}.csv"
        write_list(path, data_folder, chosen, limit)
    _options_path(Path(save_folder)).write_text(
        json.dumps(options, default=str, indent=1)
    )


def find_utterances(data_folder):
    """Lists the recordings of every speaker, relative to ``wav/``."""
    root = Path(data_folder) / "wav"
    found = defaultdict(list)
    for path in sorted(root.glob("*/*/*.wav")):
        found[path.parts[-3]].append(path.relative_to(root).as_posix())
    if not found:
        raise FileNotFoundError(
            f"No recordings in {root}: expected <speaker>/<session>/*.wav "
            "(VoxCeleb2's .m4a must be converted). Check data_folder."
        )
    return dict(found)


def read_trials(path):
    """Reads a list of trials: label, enrolment and test utterance."""
    trials = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if fields and (len(fields) != 3 or fields[0] not in ("0", "1")):
                raise ValueError(
                    f"{path}, line {number}: expected '<0 or 1> <enrolment "
                    f"wav> <test wav>', got '{line.strip()}'."
                )
            trials += [fields] if fields else []
    if {label for label, *_ in trials} != {"0", "1"}:
        raise ValueError(
            f"{path} needs trials of one speaker (1) and of two (0)."
        )
    return trials


def find_test_utterances(data_folder, verification_file):
    """Lists the utterances of the trials; all of them must be there."""
    trials = read_trials(verification_file)
    test = sorted({utt for _, *pair in trials for utt in pair})
    missing = [utt for utt in test if not _path(data_folder, utt).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{verification_file} names {missing[0]}, which is not in "
            f"{data_folder}/wav ({len(missing)} of {len(test)} are missing)."
        )
    return test


def make_trials(utterances, count, rng):
    """Draws trials: half of one speaker, half of two, or all there are."""
    same = [
        ("1", *pair)
        for utts in utterances.values()
        for pair in combinations(utts, 2)
    ]
    same = rng.sample(same, min(count // 2, len(same)))
    speakers = sorted(utterances)
    sizes = [len(utts) for utts in utterances.values()]
    available = sum(sizes) ** 2 - sum(size**2 for size in sizes)
    different = set()
    while len(different) < min(count - count // 2, available):
        first, second = rng.sample(speakers, 2)
        pair = (rng.choice(utterances[first]), rng.choice(utterances[second]))
        different.add(("0", *pair))
    return [*sorted(same), *sorted(different)]


def write_list(path, data_folder, utterances, max_seconds=None):
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


def _path(data_folder, utterance):
    return Path(data_folder) / "wav" / utterance


def _write_trials(path, trials):
    text = "".join(" ".join(trial) + "\n" for trial in trials)
    path.write_text(text, encoding="utf-8")


def _options_path(save_folder):
    return save_folder / "voxceleb_prepare.json"


def _is_done(save_folder, options):
    """Whether the lists are there; they must be those that are asked for."""
    lists = [save_folder / f"{name}.csv" for name in ("train", "dev", "test")]
    if not all(path.is_file() for path in lists):
        return False
    if _options_path(save_folder).is_file():
        before = json.loads(_options_path(save_folder).read_text())
        # As JSON gives them back: a path may be given as a Path
        now = json.loads(json.dumps(options, default=str))
        changed = [k for k in now if now[k] != before.get(k)]
        if changed:
            raise ValueError(
                f"The lists in {save_folder} were made with another "
                f"{', '.join(changed)}. Use another output_folder, or delete "
                "them if no model was trained on them."
            )
    logger.info("Preparation was completed before, skipping.")
    return True
