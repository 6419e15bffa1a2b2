"""What differs, with intervals where items were kept."""

import dataclasses
import json
import math

import pytest

from tests.unit.cli.conftest import make_report


def items(errors, prefix="u", **about):
    rows = [[f"{prefix}{i}", e, 10.0] for i, e in enumerate(errors)]
    metric = {"factor": 100.0, "unit": "points", "quantized": rows, **about}
    return {"test": {"WER": metric}}


def scored(name, before, after):
    """Return a test set with one metric."""
    metrics = {name: {"float": before, "quantized": after, "items": 4}}
    return [{"name": "test", "metrics": metrics}]


def test_plans(stablequant, plan, plan_file, tmp_path):
    layers = dict(plan.layers)
    given = layers["enc.a"].inputs["input"]
    narrow = dataclasses.replace(given, low=-1.0, high=1.0, percentile=98.0)
    layers["enc.a"] = dataclasses.replace(
        layers["enc.a"], inputs={"input": narrow}
    )
    del layers["out"]
    edited = dataclasses.replace(plan, layers=layers).save(tmp_path / "b.json")
    result = stablequant("compare", plan_file, edited, "--json")
    rows = {row["name"]: row["differs"] for row in result.data["layers"]}
    assert rows == {
        "enc.a": {
            "input percentile": [99.5, 98.0],
            "input range": [[-2.0, 2.0], [-1.0, 1.0]],
        },
        "out": {
            "weights": ["int8 symmetric per channel", None],
            "rounding": ["nearest", None],
        },
    }
    text = stablequant("compare", plan_file, edited).out
    assert "-2 to 2" in text
    assert "2 layers differ" in text


def test_the_same_plan_twice(stablequant, plan_file):
    result = stablequant("compare", plan_file, plan_file)
    assert result.code == 0
    assert "all layers are quantized alike" in result.out


def test_paired_bootstrap_where_items_are_kept(stablequant, report_file):
    first = report_file("a", items([0, 1, 0, 2]), tests=scored("WER", 5, 7.5))
    second = report_file("b", items([1, 1, 1, 2]), tests=scored("WER", 5, 12.5))
    data = stablequant("compare", first, second, "--json").data
    change = data["metrics"][0]["differences"][1]
    # 3 and 5 errors of 40 words; no draw of utterances makes B the better one
    assert change["change"] == pytest.approx(5.0)
    assert 0 <= change["low"] <= 5.0 <= change["high"] <= 10.0
    assert data["notes"] == []
    assert "+5.00 [" in stablequant("compare", first, second).out


def test_other_items_are_not_paired(stablequant, report_file):
    first = report_file("a", items([0, 1, 0, 2]))
    second = report_file("b", items([0, 1, 0, 2], prefix="v"))
    data = stablequant("compare", first, second, "--json").data
    assert data["metrics"][0]["differences"][1]["low"] is None
    assert "other test items" in data["notes"][0]


def test_perplexity_is_no_error_rate(stablequant, report_file):
    files = []
    for name, nats in (("a", [20.0, 24.0, 22.0]), ("b", [21.0, 26.0, 24.0])):
        rows = [[f"u{i}", x, 10.0] for i, x in enumerate(nats)]
        kept = {"kind": "PerplexityMetric", "factor": 1.0, "quantized": rows}
        tests = scored("PPL", 9.0, math.exp(sum(nats) / 30))
        items_file = {"test": {"PPL": kept}}
        files.append(report_file(name, items_file, tests=tests))
    data = stablequant("compare", *files, "--json").data
    change = data["metrics"][0]["differences"][1]
    expected = math.exp(71 / 30) - math.exp(66 / 30)
    assert change["change"] == pytest.approx(expected)
    assert 0 < change["low"] < expected < change["high"]
    assert data["notes"] == []


def test_metric_of_an_unknown_kind_has_no_interval(stablequant, report_file):
    kept = items([0, 1, 0, 2], kind="NewMetric")
    files = [report_file(name, kept) for name in "ab"]
    data = stablequant("compare", *files, "--json").data
    assert data["metrics"][0]["differences"][1]["low"] is None


def test_items_of_another_run_have_no_interval(stablequant, report_file):
    first = report_file("a", items([0, 1, 0, 2]))  # the report says 11 %
    second = report_file("b", items([1, 1, 1, 2]))
    data = stablequant("compare", first, second, "--json").data
    change = data["metrics"][0]["differences"][1]
    assert (change["change"], change["low"]) == (0.0, None)
    assert "not of the same run" in data["notes"][0]


def test_float_models_that_differ_have_columns(stablequant, report_file):
    same = [report_file(name) for name in "ab"]
    head = stablequant("compare", *same).out.split("test set")[1]
    assert head.split()[:3] == ["metric", "float", "A"]
    other = report_file("c", tests=scored("WER", 20.0, 21.0))
    lines = stablequant("compare", same[0], other).out.splitlines()
    start = next(i for i, row in enumerate(lines) if "metric" in row)
    assert lines[start].split()[3:7] == ["float", "A", "float", "B"]
    assert lines[start + 1].split()[2:4] == ["10.00", "20.00"]


def test_speed_of_models_without_audio(stablequant, report_file):
    test = make_report()["tests"][0]
    for key, seconds in (("float_speed", 3.0), ("quantized_speed", 1.5)):
        test[key] = {"real_time_factor": None, "seconds": seconds}
    files = [report_file(name, tests=[test]) for name in "ab"]
    data = stablequant("compare", *files, "--json").data
    assert data["speeds"][0]["measure"] == "seconds in the model"
    assert data["speeds"][0]["values"] == [1.5, 1.5]
    assert "2.00 times as fast" in stablequant("inspect", files[0]).out


def test_letters_after_z(stablequant, plan_file):
    out = stablequant("compare", *[plan_file] * 28).out
    starts = [row.split()[0] for row in out.splitlines()[1:29]]
    assert starts[25:] == ["Z", "AA", "AB"]


def test_test_sets_of_other_size(stablequant, report_file):
    other = make_report()["tests"][0]
    other["metrics"] = {"WER": {"float": 10.0, "quantized": 12.0, "items": 5}}
    second = report_file("b", tests=[other])
    data = stablequant("compare", report_file("a"), second, "--json").data
    assert data["metrics"][0]["differences"][1]["change"] == 1.0
    assert "(4 and 5)" in data["notes"][0]


def test_metric_over_pairs_keeps_no_items(stablequant, report_file):
    kept = items([], pairs=True)
    files = [report_file(name, kept) for name in "ab"]
    data = stablequant("compare", *files, "--json").data
    assert data["metrics"][0]["differences"][1]["low"] is None
    assert data["notes"] == []


def test_speed_on_the_same_machine(stablequant, report_file):
    data = stablequant(
        "compare", report_file("a"), report_file("b"), "--json"
    ).data
    assert data["speeds"] == [
        {"test": "test", "measure": "real-time factor", "values": [0.1, 0.1]}
    ]


def test_speed_on_other_machines(stablequant, report_file):
    other = {"processor": "y", "threads": 1}
    second = report_file("b", environment=other)
    result = stablequant("compare", report_file("a"), second, "--json")
    assert result.data["speeds"] == []
    assert "hardware differs" in result.data["notes"][0]


def test_three_with_a_plan_among_them(stablequant, report_file, plan_file):
    files = report_file("a"), plan_file, report_file("c")
    result = stablequant("compare", *files)
    assert result.code == 0
    assert [line[0] for line in result.out.splitlines()[1:4]] == ["A", "B", "C"]


def test_other_models_altogether(stablequant, plan, plan_file, tmp_path):
    layers = {f"x.{name}": layer for name, layer in plan.layers.items()}
    other = dataclasses.replace(plan, layers=layers).save(tmp_path / "b.json")
    notes = stablequant("compare", plan_file, other, "--json").data["notes"]
    assert "no layer in common" in notes[0]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"t": 1}', '{"t": {"WER": {"quantized": [["a", "1", 2]]}}}'],
)
def test_damaged_items(stablequant, report_file, content):
    path = report_file("a")
    (path.parent / "items.json").write_text(content)
    stablequant("compare", path, path).check_mistake("items.json")


def test_needs_two(stablequant, plan_file):
    stablequant("compare", plan_file).check_mistake("B", "--help")


def test_report_of_nothing(stablequant, tmp_path, plan_file):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"tests": [], "coverage": {}}))
    stablequant("compare", plan_file, bad).check_mistake("bad.json", "'label'")
