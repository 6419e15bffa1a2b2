"""Files of a float pass, kept from the quantized pass that follows."""

import os
import time

import pytest

from speechbrain_stablequant.recipe.result_files import kept_files

SUFFIX = "_ptq"


def write(path, text, age_seconds=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture
def start():
    return time.time()


def test_a_rewritten_file_comes_back_and_the_new_one_is_set_aside(
    tmp_path, start
):
    wer = write(tmp_path / "wer.txt", "float")
    before = wer.stat()
    with kept_files(tmp_path, [], SUFFIX, start):
        write(wer, "quantized", age_seconds=-1)
    assert wer.read_text() == "float"
    assert wer.stat().st_mtime_ns == before.st_mtime_ns
    assert (tmp_path / "wer_ptq.txt").read_text() == "quantized"


def test_a_new_file_gets_the_suffix(tmp_path, start):
    with kept_files(tmp_path, [], SUFFIX, start):
        write(tmp_path / "deep" / "hyp.trn", "quantized")
    names = sorted(p.name for p in tmp_path.rglob("*.trn"))
    assert names == ["hyp_ptq.trn"]


def test_a_file_that_carries_the_suffix_stays(tmp_path, start):
    with kept_files(tmp_path, [], SUFFIX, start):
        write(tmp_path / "wer_ptq.txt", "quantized")
    assert [p.name for p in tmp_path.iterdir()] == ["wer_ptq.txt"]


def test_a_deleted_file_comes_back(tmp_path, start):
    wer = write(tmp_path / "wer.txt", "float")
    with kept_files(tmp_path, [], SUFFIX, start):
        wer.unlink()
    assert wer.read_text() == "float"


def test_a_log_that_grows_is_left_to_its_writer(tmp_path, start):
    log = write(tmp_path / "train.log", "one\n")
    with kept_files(tmp_path, [], SUFFIX, start):
        write(log, "one\ntwo\n", age_seconds=-1)
    assert log.read_text() == "one\ntwo\n"
    assert not (tmp_path / "train_ptq.log").exists()


def test_lines_appended_to_results_are_set_aside(tmp_path, start):
    results = write(tmp_path / "results.txt", "test-clean 6.1\n")
    with kept_files(tmp_path, [], SUFFIX, start):
        write(results, "test-clean 6.1\ntest-clean 6.2\n", age_seconds=-1)
    assert results.read_text() == "test-clean 6.1\n"
    assert (tmp_path / "results_ptq.txt").read_text() == "test-clean 6.2\n"


def test_files_come_back_after_an_exception(tmp_path, start):
    wer = write(tmp_path / "wer.txt", "float")

    def interrupted_pass():
        with kept_files(tmp_path, [], SUFFIX, start):
            write(wer, "half", age_seconds=-1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_pass()
    assert wer.read_text() == "float"


def test_skipped_folders_are_not_looked_at(tmp_path, start):
    save = tmp_path / "save"
    weights = write(save / "model.ckpt", "float")
    with kept_files(tmp_path, [save.resolve()], SUFFIX, start):
        write(weights, "changed", age_seconds=-1)
        write(save / "new.ckpt", "new")
    assert weights.read_text() == "changed"
    assert (save / "new.ckpt").exists()


def test_a_change_of_an_older_file_is_said(tmp_path, start, caplog):
    data = write(tmp_path / "joined" / "a.wav", "audio", age_seconds=3600)
    with kept_files(tmp_path, [], SUFFIX, start):
        write(tmp_path / "joined" / "a.wav", "other")
    assert "a.wav" in caplog.text
    assert data.read_text() == "other"


def test_without_a_float_pass_old_text_files_are_kept(tmp_path):
    wer = write(tmp_path / "wer.txt", "float", age_seconds=3600)
    with kept_files(tmp_path, [], SUFFIX, None):
        write(wer, "quantized")
    assert wer.read_text() == "float"
    assert (tmp_path / "wer_ptq.txt").read_text() == "quantized"
