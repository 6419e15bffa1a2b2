"""``method: mixed_precision`` on models where the right answer is known."""

import json
import math

import pytest
import torch
from torch import nn

from speechbrain_stablequant import QuantizationPlan, quantize
from speechbrain_stablequant.errors import CalibrationError, KnobError
from speechbrain_stablequant.methods.settings import Settings

NAMES = ("0", "2", "4", "6")


@pytest.fixture
def network():
    """Return a classifier of its own decisions: the float error is 0 %."""
    return make_network()


def make_network(change=lambda model, x: None):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(32, 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU()),
        nn.Linear(64, 10),
    )
    x = torch.randn(512, 32)
    with torch.no_grad():
        change(model, x)
        labels = model(x).argmax(1)

    def error(model):
        return 100 * float((model(x).argmax(1) != labels).float().mean())

    return model, x, error


def search(network, **knobs):
    model, x, error = network
    knobs = {"method": "mixed_precision", "progress": False, **knobs}
    result = quantize(model, [x], score=error, **knobs)
    measured = error(model)
    result.restore()
    return result, measured


@pytest.fixture(scope="module")
def found():
    """Return what a search finds, and its error: several tests look at it."""
    torch.set_num_threads(1)
    return search(make_network(), max_drop=5.0)


def test_fewest_bytes_within_the_drop(network):
    result, measured = search(network, max_drop=2.0)
    found = result.search
    assert measured == pytest.approx(found["chosen"]["value"])
    assert measured - found["float"] <= 2.0
    inside = [row for row in found["front"] if row["change"] <= 2.0]
    assert found["chosen"]["num_bytes"] == min(r["num_bytes"] for r in inside)
    assert sum(row["chosen"] for row in found["front"]) == 1
    # Uniform 8 bits fit as well; a looser budget can only be smaller.
    looser, _ = search(network, max_drop=12.0)
    assert looser.search["chosen"]["num_bytes"] < found["chosen"]["num_bytes"]


def test_best_metric_within_the_size(network):
    result, measured = search(network, target_size=0.25)
    found = result.search
    assert found["chosen"]["ratio"] <= 0.25
    inside = [row for row in found["front"] if row["ratio"] <= 0.25]
    assert measured == pytest.approx(min(row["value"] for row in inside))
    # No worse than the largest uniform width that fits into as many bytes.
    model, x, error = network
    uniform = quantize(model, [x], bits="W4A8", progress=False)
    assert uniform.coverage.quantized_num_bytes < 0.25 * 4 * 11000
    assert measured <= error(model)


def test_the_plan_is_what_was_measured(network, found, tmp_path):
    model, x, error = network
    result, measured = found
    path = result.plan.save(tmp_path / "plan.json")
    assert result.plan.method == "mixed_precision"
    applied = quantize(model, plan=path, score=error, progress=False)
    assert applied.metrics["quantized"] == measured
    assert QuantizationPlan.load(path) == result.plan
    json.dumps(result.search)  # plain data


def test_distances_add_up(found):
    """What the allocation relies on."""
    for row in found[0].search["front"]:
        if 0 < row["distance"] < 0.05:
            ratio = row["predicted_distance"] / row["distance"]
            assert 0.7 < ratio < 1.4


def test_the_table_has_each_layer_at_each_width(network):
    candidates = ["W2A8", "W4A8", "W4", "W8A8", "W32"]
    result, _ = search(network, max_drop=5.0, candidates=candidates)
    rows = result.search["sensitivity"]
    for name in NAMES:
        mine = {r["bits"]: r for r in rows if r["layer"] == name}
        # W4 saves as much as W4A8 and its inputs are no better than 8 bits.
        assert set(mine) == {"W2A8", "W4A8", "W8A8"}
        distances = [mine[b]["distance"] for b in ("W2A8", "W4A8", "W8A8")]
        assert distances == sorted(distances, reverse=True)
        saved = [mine[b]["saved_num_bytes"] for b in ("W2A8", "W4A8", "W8A8")]
        assert saved == sorted(saved, reverse=True)


def test_float_inputs_are_offered_where_they_matter():
    def one_feature_drowns_the_rest(model, x):
        x[:, 0] *= 3000
        model[0].weight[:, 0] = 0

    network = make_network(one_feature_drowns_the_rest)
    candidates = ["W4A8", "W8A8", "W8"]
    result, _ = search(
        network, max_drop=3.0, candidates=candidates, observer="max"
    )
    rows = result.search["sensitivity"]
    offered = {
        name: {r["bits"] for r in rows if r["layer"] == name} for name in NAMES
    }
    assert offered.pop("0") == {"W4A8", "W8A8", "W8"}
    assert set(map(frozenset, offered.values())) == {
        frozenset({"W4A8", "W8A8"})
    }
    assert result.plan.layers["0"].inputs == {}
    assert result.search["chosen"]["change"] <= 3.0


def test_the_framework_of_the_paper(network):
    """Two widths, ranked by the metric alone."""
    result, _ = search(
        network, max_drop=0.3, candidates=["W8A8", "W32"], ranking="metric"
    )
    found = result.search
    assert found["chosen"]["change"] <= 0.3
    assert {p.weight.bits for p in result.plan.layers.values()} <= {8}
    assert set(found["chosen"]["bits"]) <= {"W8A8", "W32"}


def test_a_layer_that_is_never_used_keeps_the_usual_widths(network):
    model, x, error = network
    model.add_module("idle", nn.Linear(64, 64))
    forward = nn.Sequential.forward
    used = list(model)[:-1]
    model.forward = lambda x: forward(used, x)
    result, _ = search((model, x, error), max_drop=60.0)
    assert result.plan.layers["idle"].weight.bits == 8
    assert all(result.plan.layers[n].weight.bits < 8 for n in NAMES)


def test_a_budget_that_cannot_be_kept_is_said(network, caplog):
    result, _ = search(network, max_drop=0.0, candidates=["W2A8", "W3A8"])
    assert "No plan stays within max_drop 0" in caplog.text
    values = [row["value"] for row in result.search["front"]]
    assert result.search["chosen"]["value"] == min(values)


def test_a_size_that_cannot_be_had_is_an_error(network):
    with pytest.raises(KnobError, match="smallest plan has 0.1"):
        search(network, target_size=0.05)
    assert type(network[0][0]) is nn.Linear


def test_searches_for_other_budgets_share_results(network, tmp_path):
    first, _ = search(network, max_drop=2.0, output_folder=tmp_path)
    assert first.search["cost"]["resumed"] == 0
    second, _ = search(network, target_size=0.25, output_folder=tmp_path)
    assert second.search["cost"]["resumed"] > 20
    assert second.search["cost"]["evaluations"] < 10
    again, _ = search(network, max_drop=2.0, output_folder=tmp_path)
    assert again.plan == first.plan
    assert again.search["cost"]["evaluations"] == 0
    without = {k: v for k, v in again.search.items() if k != "cost"}
    assert without == {k: v for k, v in first.search.items() if k != "cost"}


def test_the_same_search_gives_the_same_plan(network, found):
    assert search(network, max_drop=5.0)[0].plan == found[0].plan


def test_without_a_metric_the_output_decides(network):
    model, x, error = network
    knobs = {"method": "mixed_precision", "progress": False}
    batches = iter(x.split(64))
    result = quantize(model, batches, target_size=0.25, **knobs)
    found = result.search
    assert found["metric"] is None
    assert found["joint"] is None
    assert found["chosen"]["ratio"] <= 0.25
    inside = [row for row in found["front"] if row["ratio"] <= 0.25]
    least = min(row["distance"] for row in inside)
    assert found["chosen"]["distance"] == least
    assert error(model) < 15


def test_without_a_metric_there_is_no_drop(network):
    model, x, _ = network
    knobs = {"method": "mixed_precision", "progress": False}
    with pytest.raises(KnobError, match="max_drop needs a metric"):
        quantize(model, [x], max_drop=1.0, **knobs)
    with pytest.raises(KnobError, match="ranking: metric needs a metric"):
        quantize(model, [x], target_size=0.3, ranking="metric", **knobs)
    with pytest.raises(CalibrationError, match="needs data"):
        quantize(model, bits="W8", target_size=0.3, **knobs)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "needs a budget: max_drop"),
        ({"max_drop": 1, "target_size": 0.5}, "one of them"),
        ({"max_drop": -1}, "max_drop is -1: use at least 0"),
        ({"target_size": 2}, "target_size is 2: use 0 to 1"),
        ({"max_drop": math.nan}, "max_drop is nan"),
        ({"max_drop": 1, "candidates": "W8A8"}, "candidates is .*list"),
        ({"max_drop": 1, "candidates": ["W9"]}, "candidates: bits is 'W9'"),
        ({"max_drop": 1, "ranking": "distanse"}, "Did you mean 'distance'"),
        ({"preset": "ecapa_tdn"}, "Did you mean 'ecapa_tdnn_2024'"),
    ],
)
def test_bad_knobs(knobs, message):
    with pytest.raises(KnobError, match=message):
        Settings.from_options({"method": "mixed_precision", **knobs})
