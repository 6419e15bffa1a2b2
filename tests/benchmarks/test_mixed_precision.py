"""The benchmark of mixed precision: its rows, its table and its picture."""

import dataclasses
import json

import pytest

from benchmarks import mixed_precision as benchmark
from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.methods.settings import Settings


def result(row, num_bytes, values, knobs, failed=None):
    """Return a row as the benchmark writes it: EER, minDCF and the loss."""
    if failed:
        return {"row": row, "failed": failed}
    metrics = {
        "loss": {"float": 0.0, "quantized": 0.0},
        "EER": {
            "float": 3.21,
            "float_interval": [2.9, 3.5],
            "quantized": values[0],
            "change": values[0] - 3.21,
            "low": -0.1,
            "high": 0.2,
        },
        "minDCF": {
            "float": 0.0081,
            "quantized": values[1],
            "change": values[1] - 0.0081,
            "low": None,
            "high": None,
        },
    }
    searched = knobs["method"] == "mixed_precision"
    cost = {
        "evaluations": 100,
        "forward_passes": 42.0,
        "computed_passes": 19.25,
        "resumed": 210,
    }
    return {
        "row": row,
        "knobs": knobs,
        "bits": {
            "blocks.*.conv": {"W4A8": [12, 10], "W8A8": [20, 10]},
            "fc": {"W8A8": [10, 10]},
        },
        "num_bytes": num_bytes,
        "float_num_bytes": 20_000_000,
        "search": {"metric": "EER", "cost": cost} if searched else {},
        "tests": [
            {
                "name": "scores",
                "metrics": metrics,
                "float_speed": {"real_time_factor": 0.03, "seconds": 9.0},
                "quantized_speed": {"real_time_factor": 0.01, "seconds": 3.0},
                "runtime": {
                    "runtime": "openvino",
                    "settings": {"threads": 1, "precision": "f32"},
                    "num_int8": 41,
                    "num_planned": 42,
                },
            }
        ],
    }


@pytest.fixture
def rows():
    return [
        result("uniform_mse", 5_200_000, (3.3, 0.0082), {"method": "uniform"}),
        result("preset", 0, (), {}, "KnobError: matches no layer."),
        result(
            "max_drop", 3_000_000, (3.25, 0.008), {"method": "mixed_precision"}
        ),
    ]


def test_table(rows):
    assert benchmark.markdown(rows).splitlines() == [
        "**scores**",
        "",
        "| row | MB | bytes | EER (change) | minDCF (change) | layers | search"
        " passes | speed | int8 layers |",
        "|---|---:|---:|---|---|---|---|---|---|",
        "| *float* | 20.000 | 100 % | 3.21 [2.90, 3.50] | 0.0081 |  |  | 0.0300 |  |",
        "| uniform_mse | 5.200 | 26.0% | 3.30 (+0.09 [-0.10, +0.20]) | 0.0082"
        " (+0.0001) | 12 W4A8, 30 W8A8 |  | 0.0100 (3.00 times) | 41 of"
        " 42 |",
        "| max_drop | 3.000 | 15.0% | 3.25 (+0.04 [-0.10, +0.20]) | 0.0080"
        " (-0.0001) | 12 W4A8, 30 W8A8 | 42 (19.2 computed, 210"
        " evaluations known) | 0.0100 (3.00 times) | 41 of 42 |",
        "",
        "| layers | uniform_mse | max_drop |",
        "|---|---|---|",
        "| `blocks.*.conv` | 12 W4A8, 20 W8A8 | 12 W4A8, 20 W8A8 |",
        "| `fc` | 10 W8A8 | 10 W8A8 |",
        "",
        "preset: KnobError: matches no layer.",
    ]
    assert benchmark.runtimes(rows) == "openvino, 1 threads, rest f32"


def test_each_test_set_has_a_table(rows):
    other = {**rows[2]["tests"][0], "name": "other"}
    rows[2]["tests"].append(other)
    text = benchmark.markdown(rows)
    assert text.count("| *float* |") == 2
    second = text[text.index("**other**") : text.index("\n| layers |")]
    assert "max_drop" in second
    assert "uniform_mse" not in second


def test_reference_passes_have_no_speed(rows):
    test = rows[0]["tests"][0]
    test["runtime"] = test["quantized_speed"] = None
    line = benchmark.markdown(rows[:1]).splitlines()[5]
    assert line.endswith("| 12 W4A8, 30 W8A8 |  |  |  |")
    assert benchmark.runtimes(rows[:1]) == "reference execution"


def test_without_audio_speed_is_in_seconds(rows):
    for key in ("float_speed", "quantized_speed"):
        rows[0]["tests"][0][key]["real_time_factor"] = None
    text = benchmark.markdown(rows[:1])
    assert "| 9.0000 s |" in text
    assert "| 3.0000 s (3.00 times) |" in text


def test_picture(rows, tmp_path):
    pytest.importorskip("matplotlib")
    png, svg = benchmark.draw(rows, tmp_path, 0.07)
    assert png.name == "mixed_precision_scores.png"
    text = svg.read_text()
    assert "float: EER 3.21" in text
    assert "uniform_mse" in text
    assert "15.0 %, 3.25" in text
    assert "preset" not in text


@pytest.mark.parametrize("row", benchmark.ROWS)
def test_rows_are_settings(row):
    base = Settings()
    settings = dataclasses.replace(base, **benchmark.row_options(row, base))
    json.dumps(dataclasses.asdict(settings))
    if row.startswith("max_drop"):
        assert settings.max_drop == 0.07
        given = benchmark.row_options(row, Settings(max_drop=0.3))
        assert given["max_drop"] == 0.3
    elif row.startswith("target"):
        assert settings.target_size == float(row[len("target_") :])
        assert settings.max_drop is None


def test_the_rows_of_the_paper_rank_and_choose_as_the_paper():
    knobs = benchmark.ROWS["max_drop_8_32_metric"]
    assert knobs["candidates"] == ("W8A8", "W32")
    assert knobs["ranking"] == "metric"
    assert benchmark.ROWS["preset"]["bits"] == "W32"


def test_an_unknown_row_is_refused():
    with pytest.raises(KnobError, match="row 'max_drp' is unknown.*max_drop"):
        benchmark.MixedPrecisionComparison(["max_drp"])


def test_the_preset_comes_last():
    """It calibrates some layers only, which must not serve other rows."""
    block = benchmark.MixedPrecisionComparison(["preset", "max_drop"])
    assert block.rows == ["max_drop", "preset"]
