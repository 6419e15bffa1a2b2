"""What reports hold as plain data: enough for a page and for comparisons."""

import json
from types import SimpleNamespace

import pytest
import torch
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_stablequant.methods.calibration import ActivationHistogram
from speechbrain_stablequant.metrics.metric import (
    Item,
    Metric,
    paired_bootstrap,
)
from speechbrain_stablequant.recipe.evaluator import find_metrics
from speechbrain_stablequant.report import Report, TestResult
from speechbrain_stablequant.report.data import (
    histogram_rows,
    item_rows,
    layer_rows,
)
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


def test_layers_have_widths_and_bytes():
    rows = {row["layer"]: row for row in layer_rows(planned({}))}
    assert {n: r["bits"] for n, r in rows.items()} == {
        "model.conv1": "W8A8",
        "model.conv2": "W4A8",
        "model.embed": "W4",
        "model.fc": "W32",
    }
    assert rows["model.conv2"]["float_num_bytes"] == 8000
    assert rows["model.conv2"]["num_bytes"] == 1000
    assert rows["model.fc"]["num_bytes"] == rows["model.fc"]["float_num_bytes"]


def test_coarse_histograms_lose_no_value():
    histogram = ActivationHistogram()
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    histogram.observe(torch.cat([values, torch.zeros(7)]))
    found = histogram.coarse(100)
    assert sum(found["counts"]) == histogram.count == 5007
    assert len(found["counts"]) <= 100
    high = found["low"] + found["bin_width"] * len(found["counts"])
    assert found["low"] <= histogram.minimum
    assert high >= histogram.maximum
    # In the right places, too: as many values below zero as there were.
    edges = found["low"] + found["bin_width"] * torch.arange(
        len(found["counts"])
    )
    below = sum(
        count
        for edge, count in zip(edges, found["counts"])
        if edge + found["bin_width"] <= 0
    )
    assert abs(below - int((values < 0).sum())) <= max(found["counts"])


def test_coarse_histograms_of_zeros_and_of_nothing():
    histogram = ActivationHistogram()
    assert histogram.coarse()["counts"] == []
    histogram.observe(torch.zeros(4))
    assert histogram.coarse() == {"low": 0.0, "bin_width": 1.0, "counts": [4]}


def test_histograms_are_those_of_the_plan():
    found = with_statistics(planned({}))
    names = [(row["layer"], row["input"]) for row in histogram_rows(found)]
    # The embedding has no quantized input; the last layer stays float.
    assert names == [("model.conv1", "x"), ("model.conv2", "x")]


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
    again = paired_bootstrap(before, after, Metric("WER"), seed=1)
    assert saved["change"] == again.difference
    assert (saved["low"], saved["high"]) == (again.low, again.high)


def test_items_without_a_float_pass_and_with_nan(tmp_path):
    report = Report("W8A8", planned({}))
    report.add(result(before=None, after=[Item("a", NAN, 1)]), seed=1)
    report.save(tmp_path)
    found = read(tmp_path / "items.json")["test"]["WER"]
    assert found["float"] is None
    assert found["quantized"] == [["a", None, 1]]


def test_embeddings_are_left_out_and_said_so():
    items = [Item("a", 0, 1, "AAAA")]
    found = item_rows({}, {"EER": (Metric("EER"), items)})["EER"]
    assert found["pairs"]
    assert found["quantized"] is None


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
