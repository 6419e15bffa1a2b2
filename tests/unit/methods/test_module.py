"""`quantize` and its search on toy models with a planted weak layer."""

import json

import pytest
import torch
from torch import nn

from speechbrain_stablequant import QuantizationPlan, quantize
from speechbrain_stablequant.errors import (
    CalibrationError,
    CoverageError,
    KnobError,
    StableQuantError,
)
from speechbrain_stablequant.layers import QuantizedModule


class Toy(nn.Module):
    """Three units; huge outliers reach the second one and carry nothing."""

    def __init__(self):
        super().__init__()
        self.units = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.units[1].weight[:, 0] = 0

    def forward(self, x):
        x = torch.tanh(self.units[0](x))
        outlier = torch.zeros_like(x)
        outlier[0, 0] = 3000.0
        x = torch.tanh(self.units[1](x + outlier))
        return self.units[2](x)


def data():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(64, 16, generator=generator) for _ in range(4)]


class Score:
    """Distance to the float model's outputs; counts its calls."""

    def __init__(self, model, stop_after=None):
        with torch.no_grad():
            self.expected = [model(x) for x in data()]
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, model):
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        pairs = zip(data(), self.expected)
        return sum(float((model(x) - y).square().mean()) for x, y in pairs)


def toy():
    torch.manual_seed(5)
    return Toy()


def search(model, score, **knobs):
    knobs = {"flag_threshold": 0.05, "progress": False, **knobs}
    return quantize(model, data(), score=score, **knobs)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_float(model, state):
    assert not any(isinstance(m, QuantizedModule) for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_weak_layer_is_flagged_and_clipping_helps():
    model = toy()
    result = search(model, Score(model))
    assert result.search["flagged"] == ["units.1"]
    assert result.search["percentiles"]["units.1"]["chosen"] < 100
    assert result.plan.layers["units.1"].inputs["input"].high < 100
    for unit in ("units.0", "units.2"):
        assert result.plan.layers[unit].inputs["input"].percentile == 100
    flagged = result.search["sensitivity"]["units.1"]["change"]
    assert result.metrics["quantized"] < flagged / 5
    assert result.metrics["float"] == 0


def test_the_plan_is_deterministic():
    plans = []
    for _ in range(2):
        model = toy()
        plans.append(search(model, Score(model)).plan)
    assert plans[0] == plans[1]


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_an_interrupted_search_is_resumed(tmp_path, stop_after):
    model = toy()
    state, whole = state_of(model), Score(model)
    expected = search(model, whole)
    expected.restore()
    stopped = Score(model, stop_after)
    with pytest.raises(KeyboardInterrupt):
        search(model, stopped, output_folder=tmp_path)
    assert_float(model, state)
    resumed = Score(model)
    result = search(model, resumed, output_folder=tmp_path)
    assert result.plan == expected.plan
    # The float pass is run again: what follows is computed from it.
    left = whole.calls - stop_after
    assert left <= resumed.calls <= min(left + 1, whole.calls - 1)
    assert result.search["cost"]["resumed"] > 0


@pytest.mark.parametrize("observer", ["max", "percentile", "mse", "entropy"])
def test_uniform_with_each_observer(observer):
    model = toy()
    result = quantize(
        model, data(), observer=observer, percentile=99, progress=False
    )
    rules = {
        p.observer
        for layer in result.plan.layers.values()
        for p in layer.inputs.values()
    }
    assert rules == {observer}
    assert result.plan.method == "uniform"
    clipped = result.plan.layers["units.1"].inputs["input"].high < 1000
    assert clipped == (observer == "percentile")


def test_a_plan_gives_the_same_integers_again(tmp_path):
    model, twin = toy(), toy()
    result = quantize(model, data(), bits="W4A8", progress=False)
    path = result.plan.save(tmp_path / "plan.json")
    again = quantize(twin, plan=path, progress=False)
    assert again.plan == result.plan
    assert all(
        torch.equal(v, state_of(model)[k]) for k, v in state_of(twin).items()
    )


def test_restore_and_training_flags():
    model = toy().train()
    model.units[1].eval()
    state = state_of(model)
    result = quantize(model, bits="W8", progress=False)
    assert [m.training for m in model.units] == [True, False, True]
    assert result.plan.layers["units.0"].inputs == {}
    result.restore()
    assert_float(model, state)


FAILURES = {
    "unknown-knob": ({"observr": "max"}, KnobError, "observer"),
    "bad-bits": ({"bits": 9}, KnobError, "bits"),
    "no-data": ({"batches": None}, CalibrationError, "data"),
    "a-tensor": ({"batches": torch.ones(2)}, CalibrationError, "iterable"),
    "empty": ({"batches": []}, CalibrationError, "none of the layers"),
    "nan": (
        {"batches": [torch.full((1, 16), float("nan"))]},
        CalibrationError,
        "units.0",
    ),
    "no-score": ({"method": "stablequant"}, CalibrationError, "score"),
    "keep": ({"keep": ["unit.*"]}, KnobError, "matches no layer"),
    "unsigned": ({"activation_signed": False}, StableQuantError, "units.0"),
    "plan": ({"plan": "missing.json"}, StableQuantError, "missing.json"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_after_a_failure_the_model_is_as_it_was(case):
    knobs, error, match = FAILURES[case]
    model = toy()
    state = state_of(model)
    with pytest.raises(error, match=match):
        quantize(model, **{"batches": data(), "progress": False, **knobs})
    assert_float(model, state)
    assert model.training


def test_too_little_coverage_shows_the_table():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.randn(64, 64))
            self.layer = nn.Linear(16, 16)

    model = Raw()
    with pytest.raises(CoverageError, match="(?s)raw.*unsupported") as info:
        quantize(model, bits="W8", progress=False)
    assert "16,384 B" in str(info.value)
    result = quantize(model, bits="W8", keep=["raw"], progress=False)
    names = [row.name for row in result.coverage.rows]
    assert sorted(names) == ["layer.bias", "layer.weight", "raw"]
    assert result.coverage.fraction == 1
    json.dumps(result.coverage.to_list())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", ["W1", "W3", "W4", "W8", "W16"])
def test_coverage_knows_the_size_in_the_file(tmp_path, bits, symmetric):
    from safetensors.torch import load_file

    from speechbrain_stablequant import save_quantized

    model = nn.Sequential(nn.Linear(50, 30), nn.Conv1d(7, 5, 3))
    result = quantize(
        model, bits=bits, weight_symmetric=symmetric, progress=False
    )
    path = save_quantized(model, tmp_path / "m", result.plan)
    stored = sum(t.numel() * t.element_size() for t in load_file(path).values())
    assert result.coverage.quantized_num_bytes == stored
    assert QuantizationPlan.from_json(result.plan.to_json()) == result.plan


@pytest.mark.parametrize(
    "knobs",
    [{"keep": ["0"]}, {"layer_bits": {"0": 32}}, {"preset": "ecapa_tdnn_2024"}],
)
def test_a_plan_that_leaves_layers_in_float_applies_again(knobs, tmp_path):
    if "preset" in knobs:
        model = nn.ModuleDict({"mfa": nn.ModuleDict(), "fc": nn.Linear(8, 64)})
        conv = nn.ModuleDict({"conv": nn.Conv1d(8, 8, 1)})
        model["mfa"]["conv"] = conv
        model["blocks"] = nn.ModuleList(
            nn.ModuleDict(
                {"tdnn1": nn.ModuleDict({"conv": nn.ModuleDict({"conv": c})})}
            )
            for c in (nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1))
        )
        forward = lambda model, x: model["fc"](  # noqa: E731
            model["mfa"]["conv"]["conv"](
                model["blocks"][1]["tdnn1"]["conv"]["conv"](x)
            ).mT
        )
    else:
        model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 2))
        forward = None
    x = torch.randn(2, 8, 8)
    first = quantize(model, [x], forward, progress=False, **knobs)
    path = first.plan.save(tmp_path / "plan.json")
    kinds = {n: type(m) for n, m in model.named_modules()}
    first.restore()
    second = quantize(model, plan=path, progress=False)
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert second.coverage.fraction == 1.0
    assert {r.detail for r in second.coverage.rows if r.by_request} == {
        "32 bits, by the plan"
    }


def test_two_sets_of_levels_end_up_in_the_plan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    data = [torch.randn(16, 8) for _ in range(4)]
    errors = {}
    with torch.no_grad():
        expected = [model(x) for x in data]
    for signed in (True, "auto"):
        result = quantize(
            model, data, bits="W8A3", activation_signed=signed, progress=False
        )
        with torch.no_grad():
            errors[signed] = sum(
                float((model(x) - y).square().sum())
                for x, y in zip(data, expected)
            )
        result.restore()
    schemes = [p.inputs["input"].scheme for p in result.plan.layers.values()]
    assert [scheme.signed for scheme in schemes] == [True, False]
    assert errors["auto"] < errors[True]


@pytest.mark.parametrize(("levels", "count"), [("odd", 4), ("ternary", 3)])
def test_an_option_reaches_the_layers_it_is_for(levels, count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).eval()
    quantize(
        model,
        bits="W2",
        layer_bits={"1": "W8"},
        method="uniform",
        weight_levels=levels,
        progress=False,
    )
    values = model[0].quantized_weight("weight").values
    assert len(values.unique()) == count
    assert f"int2 {levels} symmetric" in repr(model[0])
    assert "int8 symmetric" in repr(model[1])
