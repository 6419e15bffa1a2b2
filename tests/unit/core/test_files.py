"""Outputs: all of them or nothing, and nothing of the user's lost."""

import pytest

from speechbrain_stablequant.core.files import check_output, filled
from speechbrain_stablequant.errors import OutputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_filled_at_the_end(tmp_path):
    output = tmp_path / "deep" / "out"
    with filled(output) as work:
        (work / "a").write_text("1")
        assert not output.exists()
    assert names(output) == ["a"]
    assert names(output.parent) == ["out"]


def test_nothing_is_left_of_a_failure(tmp_path):
    output = tmp_path / "out"

    def fail():
        with filled(output) as work:
            (work / "a").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_empty_folder_is_fine(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with filled(output) as work:
        (work / "a").write_text("1")
    assert names(output) == ["a"]


def test_existing_output_is_refused(tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(OutputError, match="not empty"):
        check_output(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "mine", overwrite=True)


def test_refusal_names_the_option_where_there_is_one(tmp_path):
    (tmp_path / "mine").write_text("1")
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(tmp_path, overwrite=False)
    with pytest.raises(OutputError, match="or remove it"):
        check_output(tmp_path)


def test_files_of_an_older_output_go_at_the_end(tmp_path):
    for name in ("a", "b", "mine"):
        (tmp_path / name).write_text("old")

    def fail():
        with filled(tmp_path, overwrite=True, old=["a", "b"]):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["a", "b", "mine"]
    with filled(tmp_path, overwrite=True, old=["a", "b"]) as work:
        (work / "a").write_text("new")
    assert names(tmp_path) == ["a", "mine"]


def test_overwriting_replaces_files_of_the_same_name_only(tmp_path):
    for name in ("a", "mine"):
        (tmp_path / name).write_text("old")
    with filled(tmp_path, overwrite=True) as work:
        (work / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "mine").read_text() == "old"
