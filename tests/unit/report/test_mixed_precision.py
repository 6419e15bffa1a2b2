"""A mixed-precision search as text and CSV."""

import csv

import pytest
from torch import nn

from speechbrain_stablequant.core.plan import (
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.methods.coverage import cover
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.report import mixed_precision as front
from tests.unit.report.helpers import planned, search_report, without_metric


@pytest.fixture
def search():
    return search_report()


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_layers_and_bytes_are_counted_by_type_and_width(search):
    counts = front.bits_by_type(planned(search))
    assert counts == {
        "model.conv1": {"W8A8": (1, 1000)},
        "model.conv2": {"W4A8": (1, 1000)},
        "model.embed": {"W4": (1, 250)},
        "model.fc": {"W32": (1, 1000)},
    }


def test_layers_at_like_places_are_of_one_type():
    conversion = Conversion(
        nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    )
    layer = LayerPlan(QuantizationScheme(bits=4))
    plan = QuantizationPlan({"0": layer, "2": layer})
    coverage = cover(conversion, plan, Settings(method="uniform"))
    assert front.bits_by_type(Planned(plan, coverage)) == {
        "*": {"W4": (2, 2 * 64 * (32 + 4)), "W32": (1, 64 * 64 * 4)}
    }


def test_chosen_widths_are_spelled_as_the_candidates(search):
    chosen = front.chosen_bits(planned(search).plan, search)
    assert chosen == {
        "model.conv1": "W8A8",
        "model.conv2": "W4A8",
        "model.embed": "W4A8",  # it has no input
        "model.fc": "W32",
    }


def test_text(search):
    lines = front.front_lines(planned(search))
    assert lines == [
        "mixed precision: 20.0% of the bytes (max_drop 0.07, candidates W4A8"
        " W8A8 W32)",
        "  on the search set: EER 3.21, quantized 3.26, +0.05 [-0.10, +0.20]"
        " points",
        "layers and MB       W4A8         W4       W8A8        W32",
        "  model.conv1          -          -  1 (0.001)          -",
        "  model.conv2  1 (0.001)          -          -          -",
        "  model.embed          -  1 (0.000)          -          -",
        "  model.fc             -          -          -  1 (0.001)",
        "most sensitive layers, distance     W4A8     W8A8  plan",
        "  model.fc                       8.0e-02  4.0e-04  W32",
        "  model.embed                    6.0e-02  3.0e-04  W4A8",
        "  model.conv2                    4.0e-02  2.0e-04  W4A8",
        "  model.conv1                    2.0e-02  1.0e-04  W8A8",
        "Pareto front, search set   bytes    EER   change [95 % interval]"
        "  distance  layers",
        "  efficient                13.0%  45.00  +41.80 [+40.00, +43.00]"
        "         -  4 W4A8",
        "  chosen                   20.0%   3.26     +0.05 [-0.10, +0.20]"
        "   1.0e-02  2 W4A8, 1 W8A8, 1 W32",
        "  efficient               100.0%   3.21     +0.00 [+0.00, +0.00]"
        "   0.0e+00  4 W32",
        "  2 more are Pareto-dominated, see front.csv",
        "search: 60 evaluations, 6.0 passes over the search set, of which 2.5"
        " were computed, in 12 s; 4 resumed",
    ]


def test_a_chosen_plan_that_is_dominated_says_so(search):
    search["front"][1]["efficient"] = False
    text = "\n".join(front.front_lines(planned(search)))
    assert "  chosen, dominated" in text
    assert "  2 more are Pareto-dominated" in text


def test_text_without_a_metric(search):
    lines = front.front_lines(planned(without_metric(search)))
    assert not any("EER" in line or "search set:" in line for line in lines)
    head = next(line for line in lines if line.startswith("Pareto"))
    assert head.split()[-3:] == ["bytes", "distance", "layers"]


def test_csv(search, tmp_path):
    front.save_front(tmp_path, planned(search))
    plans = read(tmp_path / "front.csv")
    assert len(plans) == 5
    assert plans[1]["ratio"] == "0.2"
    assert plans[1]["chosen"] == "True"
    assert [p["efficient"] for p in plans].count("True") == 3
    assert [plans[1][b] for b in ("W4A8", "W8A8", "W32")] == ["2", "1", "1"]
    # What is not a number is nothing.
    assert plans[0]["distance"] == plans[3]["value"] == plans[3]["low"] == ""
    rows = read(tmp_path / "sensitivity.csv")
    assert len(rows) == 8
    assert rows[0]["layer"] == "model.conv1"
    assert float(rows[0]["distance"]) == 0.02
    chosen = [(r["layer"], r["bits"]) for r in rows if r["chosen"] == "True"]
    assert chosen == [
        ("model.conv1", "W8A8"),
        ("model.conv2", "W4A8"),
        ("model.embed", "W4A8"),
    ]
