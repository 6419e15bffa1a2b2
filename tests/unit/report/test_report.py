"""The report of a run: its table, and the files that it writes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.recipe.evaluator import find_metrics
from speechbrain_stablequant.report import Report, TestResult
from tests.unit.report.helpers import planned, search_report, with_statistics

NAN = float("nan")
FLOAT = [Item("a", 1, 10), Item("b", 0, 5), Item("c", 2, 8)]
QUANTIZED = [Item("c", 3, 8), Item("a", 1, 10), Item("b", 0, 5)]


def result(name="test", before=FLOAT, after=QUANTIZED) -> TestResult:
    metric = Metric("WER")
    return TestResult(
        name,
        float_loss=1.0,
        loss=1.1,
        float_metrics={"WER": (metric, before)} if before else {},
        metrics={"WER": (metric, after)},
    )


def read(path):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_items_give_the_same_metric_again(tmp_path):
    report = Report("W8A8", planned({}))
    report.add(result(), seed=1)
    report.save(tmp_path)
    found = read(tmp_path / "items.json")["test"]["WER"]
    assert found["factor"] == 100.0
    assert found["unit"] == "points"
    assert not found["pairs"]
    before, after = (
        [Item(*row) for row in found[side]] for side in ("float", "quantized")
    )
    saved = report.tests[0]["metrics"]["WER"]
    again = Metric("WER").compare(before, after, seed=1)
    assert saved["change"] == again.difference
    assert (saved["low"], saved["high"]) == (again.low, again.high)


def test_items_without_a_float_pass_and_with_nan(tmp_path):
    report = Report("W8A8", planned({}))
    report.add(result(before=None, after=[Item("a", NAN, 1)]), seed=1)
    report.save(tmp_path)
    found = read(tmp_path / "items.json")["test"]["WER"]
    assert found["float"] is None
    assert found["quantized"] == [["a", None, 1]]


@pytest.mark.parametrize("statistics", [True, False])
def test_report_names_its_histograms(tmp_path, statistics):
    plan = planned(search_report())
    report = Report("x", with_statistics(plan) if statistics else plan)
    report.save(tmp_path)
    named = read(tmp_path / "report.json")["histograms"]
    assert (named is not None) == statistics
    assert (tmp_path / "histograms.json").is_file() == statistics


def test_plain_statistics_have_a_direction_only_by_their_name(tmp_path):
    def stats(values):
        found = MetricStats(lambda values: values, batch_eval=True)
        found.append(["a", "b"], values=torch.tensor(values))
        return found

    brain = SimpleNamespace(
        pesq_metric=stats([3.0, 3.2]), error_metrics=stats([0.1, 0.3])
    )
    metrics = find_metrics(brain)
    report = Report("W8A8", planned({}))
    report.add(
        TestResult("test", float_metrics=metrics, metrics=metrics), seed=1
    )
    pesq, error = (report.tests[0]["metrics"][n] for n in ("pesq", "error"))
    assert pesq["float"] == pytest.approx(3.1)
    assert (pesq["unit"], pesq["lower_is_better"]) == ("", None)
    assert error["float"] == pytest.approx(20.0)
    assert (error["unit"], error["lower_is_better"]) == ("points", True)


def test_the_report_has_text_and_files(tmp_path):
    report = Report("W8A8 mixed_precision", planned(search_report()))
    report.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["search"]["chosen"]["ratio"] == 0.2
    assert saved["search"]["front"][3]["value"] is None  # nan
    assert (tmp_path / "front.csv").is_file()
    table = report.table()
    assert "mixed precision: 20.0% of the bytes" in table
    assert table.count("search: 60 evaluations") == 1


def test_other_methods_have_no_front(tmp_path):
    report = Report("W8A8 uniform", planned({}))
    report.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert "mixed precision" not in report.table()


def test_reports_import_without_drawing():
    """Matplotlib is loaded when there is something to draw, not before."""
    modules = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, speechbrain_stablequant.report as r;"
            "print([n for n in sys.modules if n.endswith('report.plots')])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert modules.stdout.strip().endswith("[]")
