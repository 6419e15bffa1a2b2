"""The page of a recipe run: what a user finds beside the results."""

import json
import shutil

import pytest
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.report import write_page
from speechbrain_stablequant.report.page import pictures
from tests.integration import folders, tiny_brain, toy

QUICK = "search_utterances: 6, calibration_utterances: 6"


@pytest.fixture(scope="module")
def page_run(trained, tmp_path_factory):
    """Evaluate two test sets with plots and TensorBoard; the folder."""
    folder = tmp_path_factory.mktemp("page") / "experiment"
    shutil.copytree(trained, folder, copy_function=shutil.copy2)
    hparams = toy.load(folder, f"ptq: {{plots: True, {QUICK}}}")
    hparams["train_logger"] = TensorboardLogger(str(folder / "events"))
    toy.run(hparams)
    return folder


def test_page_and_plots_are_there(page_run):
    folder = page_run / "ptq"
    text = (folder / "report.html").read_text()
    report = folders.report(page_run)
    for test in report["tests"]:
        assert test["name"] in text
        assert f"{test['metrics']['WER']['quantized']:.2f}" in text
    assert str(page_run) not in text
    names = {"sizes", "sensitivity", "bits", "histograms"}
    found = {path.name for path in (folder / "plots").iterdir()}
    assert found == {f"{n}.{end}" for n in names for end in ("png", "svg")}
    assert text.count("<svg") >= len(names)


def test_page_is_made_again_from_the_files(page_run, tmp_path):
    folder = shutil.copytree(page_run / "ptq", tmp_path / "elsewhere")
    before = (folder / "report.html").read_bytes()
    shutil.rmtree(folder / "plots")
    (folder / "report.html").unlink()
    assert write_page(folder).read_bytes() == before
    assert (folder / "plots" / "bits.png").is_file()


def test_items_are_those_of_the_report(page_run):
    text = (page_run / "ptq" / "items.json").read_text()
    items = folders.strict_json(text)
    report = folders.report(page_run)
    assert list(items) == [t["name"] for t in report["tests"]]
    for test in report["tests"]:
        for name in ("WER", "CER"):
            found = items[test["name"]][name]
            for side in ("float", "quantized"):
                value = Metric(name).value(Item(*row) for row in found[side])
                assert value == test["metrics"][name][side]


def test_histograms_are_small_and_of_each_input(page_run):
    path = page_run / "ptq" / "histograms.json"
    rows = folders.strict_json(path.read_text())
    clipping = folders.report(page_run)["clipping"]
    named = {(row["layer"], row["input"]) for row in clipping}
    assert {(row["layer"], row["input"]) for row in rows} == named
    assert path.stat().st_size < 2000 * len(rows)
    assert all(len(row["counts"]) <= 120 for row in rows)


def test_tensorboard_has_both_test_sets(page_run):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(page_run / "events"))
    events.Reload()
    tests = folders.report(page_run)["tests"]
    for test in tests:
        row = test["metrics"]["WER"]
        for side in ("float", "quantized"):
            (event,) = events.Scalars(f"ptq/{test['name']}/WER/{side}")
            assert event.value == pytest.approx(row[side])
    assert "ptq/sensitivity" in events.Tags()["images"]
    # What the recipe logs in both passes stays apart.
    for tag, side in (("WER/test", "float"), ("ptq/WER/test", "quantized")):
        rates = [test["metrics"]["WER"][side] for test in tests]
        logged = [event.value for event in events.Scalars(tag)]
        assert logged == pytest.approx(rates)


def test_without_plots_there_is_no_page(tmp_path):
    brain = tiny_brain.build(tmp_path, training={"epochs": 1})
    tiny_brain.fit(brain)
    tiny_brain.evaluate(brain)
    names = {path.name for path in (tmp_path / "ptq").iterdir()}
    assert "report.json" in names
    assert names.isdisjoint({"report.html", "plots"})


def test_a_drawing_error_costs_the_drawing_only(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(pictures, "_drawings", fail)
    brain = tiny_brain.build(tmp_path, plots=True, training={"epochs": 1})
    tiny_brain.fit(brain)
    test = tiny_brain.evaluate(brain)
    assert "could not be made (RuntimeError: no ink)" in caplog.text
    saved = json.loads((tmp_path / "ptq" / "report.json").read_text())
    assert saved["tests"][0]["metrics"]["loss"] == test["metrics"]["loss"]
    assert not (tmp_path / "ptq" / "report.html").exists()
