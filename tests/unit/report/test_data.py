"""Plain data of a report: layers, histograms and items."""

import torch

from speechbrain_stablequant.methods.calibration import ActivationHistogram
from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.report.data import (
    histogram_rows,
    item_rows,
    layer_rows,
)
from tests.unit.report.helpers import planned, with_statistics


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


def test_embeddings_are_left_out_and_said_so():
    items = [Item("a", 0, 1, "AAAA")]
    found = item_rows({}, {"EER": (Metric("EER"), items)})["EER"]
    assert found["pairs"]
    assert found["quantized"] is None
