"""The lists of sentences of the language-model recipes."""

import csv
import gzip
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "LibriSpeech" / "LM"


@pytest.fixture(scope="module")
def prepare():
    sys.path.insert(0, str(RECIPE))
    import text_prepare

    sys.path.remove(str(RECIPE))
    return text_prepare.prepare_text


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "train" / "1").mkdir(parents=True)
    lines = [f"LINE {n} OF MANY" for n in range(40)]
    (folder / "a.train.txt").write_text("\n".join(lines) + "\n\n")
    (folder / "b.train.txt").write_text("ANOTHER   LINE\n")
    (folder / "train" / "1" / "1-2.trans.txt").write_text("1-2-0 HE SAID SO\n")
    with gzip.open(folder / "norm.txt.gz", "wt") as file:
        file.write("PACKED WORDS\n")
    return folder


def rows(folder, split):
    with open(folder / f"{split}.csv", newline="") as file:
        return list(csv.DictReader(file))


def texts(folder, split):
    return [row["wrd"] for row in rows(folder, split)]


def test_all_kinds_of_files(prepare, data, tmp_path):
    patterns = ["b.train.txt", "train/**/*.trans.txt", "norm.txt.gz"]
    prepare(str(tmp_path), {"train": patterns}, str(data))
    expected = ["ANOTHER LINE", "HE SAID SO", "PACKED WORDS"]
    assert texts(tmp_path, "train") == expected


def test_duration_counts_the_end_of_the_line(prepare, data, tmp_path):
    prepare(str(tmp_path), {"test": ["b.train.txt"]}, str(data))
    (row,) = rows(tmp_path, "test")
    assert int(row["duration"]) == len("ANOTHER LINE") + 1


def test_a_number_limits_the_words(prepare, data, tmp_path):
    for folder in ("one", "two"):
        splits = {"train": ["*.train.txt=20"]}
        prepare(str(tmp_path / folder), splits, str(data))
    drawn = texts(tmp_path / "one", "train")
    assert drawn == texts(tmp_path / "two", "train")
    words = [len(text.split()) for text in drawn]
    assert sum(words) >= 20 > sum(words[:-1])
    assert drawn != sorted(drawn)


def test_held_out_sentences_leave_the_training_set(prepare, data, tmp_path):
    (data / "c.train.txt").write_text("LINE 3 OF MANY\n")  # again
    prepare(
        str(tmp_path),
        {"train": ["*.train.txt"], "common": ["norm.txt.gz"]},
        str(data),
        held_out={"valid": 5, "common": 7},
    )
    train, valid, common = (
        set(texts(tmp_path, split)) for split in ("train", "valid", "common")
    )
    assert (len(valid), len(common)) == (5, 8)
    assert "PACKED WORDS" in common
    assert not train & (valid | common)
    assert not valid & common
    assert len(train | valid | common) == 42


def test_missing_files_are_named(prepare, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\*\.txt"):
        prepare(str(tmp_path), {"train": ["nothing*.txt"]}, str(data))


def test_skipped_preparation_writes_nothing(prepare, data, tmp_path):
    splits = {"train": ["a.train.txt"]}
    prepare(str(tmp_path / "x"), splits, str(data), skip_prep=True)
    assert not (tmp_path / "x").exists()
