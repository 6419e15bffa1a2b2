"""The lists of the speaker recipe, from a folder of silence."""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec"
SPEAKERS, UTTERANCES, RATE = 8, 6, 16000
TRIALS = "1 id0/s/0.wav id0/s/1.wav\n0 id0/s/0.wav id1/s/2.wav\n"


@pytest.fixture(scope="module")
def prepare():
    sys.path.insert(0, str(RECIPE))
    import voxceleb_prepare

    sys.path.remove(str(RECIPE))
    return voxceleb_prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for speaker in range(SPEAKERS):
        for utterance in range(UTTERANCES):
            name = f"{'id' if speaker < 6 else 'so'}{speaker}"
            path = folder / "wav" / name / "s" / f"{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(RATE + 100 * speaker), RATE)
    (folder / "veri_test.txt").write_text(TRIALS)
    return folder


@pytest.fixture
def run(prepare, data, tmp_path):
    def run(folder="lists", **options):
        options = {
            "data_folder": str(data),
            "save_folder": str(tmp_path / folder),
            "verification_file": str(data / "veri_test.txt"),
            "dev_speakers": 3,
            **options,
        }
        prepare.prepare_voxceleb(**options)
        return tmp_path / folder

    return run


def rows(folder, name):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def trials(folder):
    lines = (folder / "dev_trials.txt").read_text().splitlines()
    return [line.split() for line in lines]


def test_no_speaker_is_in_two_lists(run):
    folder = run()
    found = {n: rows(folder, n) for n in ("train", "dev", "test")}
    speakers = {n: {r["spk_id"] for r in found[n]} for n in found}
    assert speakers["test"] == {"id0", "id1"}
    assert len(speakers["dev"]) == 3
    assert len(set.union(*speakers.values())) == SPEAKERS
    assert len(found["train"]) == 3 * UTTERANCES
    # Of the test speakers only what is in the trials
    assert {r["ID"] for r in found["test"]} == {
        *("id0/s/0.wav", "id0/s/1.wav", "id1/s/2.wav")
    }


def test_trials_are_labelled_right_and_over_dev_utterances(run):
    folder = run(dev_trials=60)
    names = {row["ID"] for row in rows(folder, "dev")}
    found = trials(folder)
    assert Counter(label for label, *_ in found) == {"1": 30, "0": 30}
    assert len({tuple(t) for t in found}) == 60
    for label, first, second in found:
        assert {first, second} <= names
        assert first != second
        assert (label == "1") == (first.split("/")[0] == second.split("/")[0])


def test_there_are_no_more_trials_than_pairs(run):
    """Asking for more ends, with all pairs."""
    found = trials(run(dev_speakers=2, dev_max_utterances=2, dev_trials=1000))
    assert Counter(label for label, *_ in found) == {"1": 2, "0": 8}


def test_dev_utterances_can_be_limited_and_cut(run):
    limits = {"dev_max_utterances": 4, "max_seconds": 0.5}
    folder = run(dev_speakers=2, dev_prefix="so", **limits)
    found = rows(folder, "dev")
    assert [row["spk_id"] for row in found] == ["so6"] * 4 + ["so7"] * 4
    assert {row["stop"] for row in found} == {str(RATE // 2)}
    assert {row["stop"] for row in rows(folder, "train")} != {str(RATE // 2)}


def test_same_seed_same_lists(run):
    folders = [run("a"), run("b"), run("c", seed=7)]
    texts = [(f / "dev_trials.txt").read_text() for f in folders]
    assert texts[0] == texts[1] != texts[2]


def test_lists_are_not_written_twice(run):
    folder = run()
    (folder / "dev.csv").write_text("as it was")
    assert (run() / "dev.csv").read_text() == "as it was"


def test_lists_made_otherwise_are_refused(run):
    run()
    with pytest.raises(ValueError, match="another dev_speakers, seed"):
        run(dev_speakers=2, seed=3)


@pytest.mark.parametrize("count", [1, 7])
def test_number_of_dev_speakers_is_checked(run, count):
    with pytest.raises(ValueError, match="of 6 speakers"):
        run(dev_speakers=count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRIALS + "1 id0/s/0.wav\n", "line 3: expected"),
        (TRIALS + "2 id0/s/0.wav id0/s/1.wav\n", "line 3: expected"),
        (TRIALS.splitlines()[0], "of two"),
        (TRIALS.replace("2.wav", "99.wav"), r"id1/s/99.wav.*\(1 of 3"),
    ],
)
def test_bad_trials_are_refused(run, tmp_path, text, message):
    path = tmp_path / "trials.txt"
    path.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(verification_file=str(path))


def test_a_folder_without_recordings_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="<speaker>/<session>"):
        run(data_folder=str(tmp_path))
