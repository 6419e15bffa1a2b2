"""The benchmark of roundings: its cells, its table, a run in a recipe."""

import json

import pytest

from benchmarks import rounding as benchmark
from speechbrain_stablequant.errors import KnobError
from tests.integration import toy


def row(cell, rounding, value):
    """Return a row as the benchmark writes it."""
    change = {"change": value - 5.0, "low": -0.5, "high": 0.75}
    metrics = {"WER": {"float": 5.0, "quantized": value, **change}}
    return {
        "cell": cell,
        "rounding": rounding,
        "test": {"name": "test-clean", "metrics": metrics},
        "plan_seconds": 12.3,
        "bytes_of_float": 0.098,
        "from_nearest": {"WER": {"change": -1.25, "low": -2.0, "high": -0.5}},
    }


def test_table():
    rows = [row("W3g64", "nearest", 7.25), row("W3g64", "gptq", 6.0)]
    text = benchmark.markdown(rows)
    assert "**test-clean**, WER of the float model: 5.00" in text
    assert (
        "| W3g64 | 9.8% | 7.25 (+2.25 [-0.50, +0.75]) "
        "| 6.00 (+1.00 [-0.50, +0.75]) | -1.25 [-2.00, -0.50] | 12 / 12 |"
    ) in text


def test_cells():
    assert benchmark.cell_options("W3g64") == {
        "bits": "W3",
        "weight_granularity": "per_group",
        "weight_group_size": 64,
    }
    assert benchmark.cell_options("W4A8")["weight_group_size"] is None
    with pytest.raises(KnobError, match="W3g"):
        benchmark.RoundingComparison(cells=["W3g"])


BLOCK = """
ptq: !new:benchmarks.rounding.RoundingComparison
    checkpointer: !ref <checkpointer>
    cells: [W3, W3A8]
    calibration_utterances: 8
    rounding_passes: 3
"""


@pytest.mark.slow
def test_in_a_recipe(tmp_path, capsys):
    overrides = "number_of_epochs: 3"
    brain, _ = toy.run(toy.load(tmp_path, overrides, BLOCK))
    rows = json.loads((tmp_path / "ptq" / "rounding.json").read_text())
    keys = [(r["cell"], r["rounding"], r["test"]["name"]) for r in rows]
    assert keys == [
        (cell, rounding, test)
        for test in toy.TEST_SETS
        for cell in ("W3", "W3A8")
        for rounding in ("nearest", "gptq")
    ]
    for found in rows:
        assert set(found["from_nearest"]) >= {"WER", "CER"}
        folder = f"{found['cell']}_{found['rounding']}"
        path = tmp_path / "ptq" / "rounding" / folder / "plan.json"
        layers = json.loads(path.read_text())["layers"].values()
        roundings = {layer["rounding"] for layer in layers}
        assert (found["rounding"] == "gptq") == ("gptq" in roundings)
    assert "| W3A8 |" in capsys.readouterr().out
    assert not any(m._forward_pre_hooks for m in brain.modules.modules())
