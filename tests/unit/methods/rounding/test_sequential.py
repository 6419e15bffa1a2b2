"""A model rounded unit by unit, through `quantize` and back."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from speechbrain_stablequant import (
    QuantizationPlan,
    load_quantized,
    quantize,
    save_quantized,
)
from speechbrain_stablequant.core.numerics import quantize as quantize_rows
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.errors import (
    CalibrationError,
    KnobError,
    PlanError,
)
from speechbrain_stablequant.layers import Conversion, QuantizedModule
from speechbrain_stablequant.methods.pipeline import make_plan
from speechbrain_stablequant.methods.rounding import round_weights
from speechbrain_stablequant.methods.settings import Settings
from tests.unit.methods.rounding.test_gptq import correlated


class Toy(nn.Module):
    """A convolution, four blocks and a head; one layer is never called."""

    def __init__(self):
        super().__init__()
        self.names = nn.Embedding(5, 24)
        self.conv = nn.Conv1d(24, 24, 3, padding=1, groups=2)
        self.units = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        self.unused = nn.Linear(24, 24)
        self.head = nn.Linear(24, 6)

    def forward(self, x):
        x = x + self.names.weight[0]
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        for unit in self.units:
            x = x + torch.tanh(unit(x))
        return self.head(x)


@pytest.fixture
def toy():
    torch.manual_seed(5)
    return Toy().eval()


@pytest.fixture(scope="module")
def batches():
    x, _ = correlated(n=24, positions=960, rank=6)
    return list(x.reshape(6, 8, 20, 24))


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_float(model, state):
    assert not any(isinstance(m, QuantizedModule) for m in model.modules())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def output_error(model, batches, **knobs):
    """Return the relative error of the output of the quantized model."""
    with torch.no_grad():
        expected = [model(x) for x in batches]
        result = quantize(model, batches, progress=False, **knobs)
        found = [model(x) for x in batches]
    result.restore()
    error = sum((y - z).square().sum() for y, z in zip(found, expected))
    return float(error / sum(z.square().sum() for z in expected)) ** 0.5


GROUPS = {"weight_granularity": "per_group", "weight_group_size": 8}


def quantized_layers(model):
    """Yield the quantized layers that have one weight, by name."""
    for name, module in model.named_modules():
        if hasattr(module, "weight_values"):
            yield name, module


@pytest.mark.parametrize("knobs", [{}, GROUPS], ids=["channels", "groups"])
@pytest.mark.parametrize("bits", ["W4", "W3", "W3A8"])
def test_less_error_than_the_nearest(toy, batches, bits, knobs):
    state = state_of(toy)
    nearest = output_error(toy, batches, bits=bits, **knobs)
    found = output_error(toy, batches, bits=bits, rounding="gptq", **knobs)
    assert found < 0.8 * nearest
    assert_float(toy, state)


@pytest.mark.parametrize(
    "knobs",
    [
        {"method": "stablequant", "bits": "W3A8"},
        {
            "method": "mixed_precision",
            "bits": "W8A8",
            "target_size": 0.6,
            "candidates": ["W2A8", "W3A8", "W4A8", "W8A8"],
            "front_points": 2,
        },
    ],
    ids=lambda knobs: knobs["method"],
)
def test_after_a_search(toy, batches, knobs):
    """The search finds the same plan, the rounding lowers its error."""
    state = state_of(toy)
    with torch.no_grad():
        expected = [toy(x) for x in batches]

    def score(model):
        pairs = zip(batches, expected)
        return sum(float((model(x) - y).square().sum()) for x, y in pairs)

    found = {}
    for rounding in ("nearest", "gptq"):
        result = quantize(
            toy, batches, score=score, rounding=rounding, progress=False,
            **knobs,
        )  # fmt: skip
        found[rounding] = result
        result.restore()
        assert_float(toy, state)
    nearest, other = found["nearest"], found["gptq"]
    layers = {
        name: dataclasses.replace(layer, rounding="nearest")
        for name, layer in other.plan.layers.items()
    }
    assert layers == nearest.plan.layers
    assert other.metrics["quantized"] < 0.7 * nearest.metrics["quantized"]


def test_the_plan_says_how_each_layer_was_rounded(toy, batches):
    result = quantize(toy, batches, bits="W4", rounding="gptq", progress=False)
    rounding = {n: p.rounding for n, p in result.plan.layers.items()}
    assert rounding.pop("names") == rounding.pop("unused") == "nearest"
    assert set(rounding.values()) == {"gptq"}
    assert "rounding" not in result.plan.settings
    details = {row.name: row.detail for row in result.coverage.rows}
    assert "never reached" in details["unused.weight"]
    assert "no Hessian for Embedding" in details["names.weight"]
    assert QuantizationPlan.from_json(result.plan.to_json()) == result.plan


def test_what_was_never_reached_is_nearest_and_named(toy, batches):
    settings = Settings(bits="W4", method="uniform", rounding="gptq")
    with Conversion(toy) as conversion:
        planned = make_plan(
            conversion,
            settings,
            lambda: [toy(x) for x in batches],
            None,
            progress=False,
        )
        assert planned.unreached == ["unused"]
        assert "unused" not in planned.weights
        nearest = quantize_nearest(planned.plan.layers["unused"], toy.unused)
        conversion.apply_plan(planned.plan, planned.weights)
        assert torch.equal(toy.unused.weight_values, nearest)


def quantize_nearest(plan, layer):
    rows = layer.weight.detach()
    return quantize_rows(rows, plan.weight, plan.weight_observer).values


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 7), (1, 1), (3, 3), (100, 7)]
)
def test_passes(toy, batches, limit, expected):
    """Eight blocks; none of the embedding's needs a pass of its own."""
    passes = []

    def calibrate():
        # What comes before is quantized already, what follows is not.
        kinds = [isinstance(u, QuantizedModule) for u in toy.units]
        passes.append(kinds.count(True))
        assert kinds == sorted(kinds, reverse=True)
        for x in batches[:2]:
            toy(x)

    settings = Settings(
        bits="W4", method="uniform", rounding="gptq", rounding_passes=limit
    )
    plan = uniform(toy)
    with Conversion(toy) as conversion:
        rounded = round_weights(conversion, plan, calibrate, settings, False)
    assert len(passes) == expected
    assert passes == sorted(passes)
    assert passes[0] == 0
    assert passes[-1] == (0 if limit == 1 else max(passes))
    assert list(rounded.plan.layers) == list(plan.layers)


def uniform(model, **scheme):
    """Return a plan for all layers, each element of a list a unit."""
    return QuantizationPlan(
        {
            name: LayerPlan(QuantizationScheme(bits=4, **scheme), unit=name)
            for name, module in model.named_modules()
            if hasattr(module, "weight")
        }
    )


def test_a_block_sees_what_quantized_blocks_give(toy, batches):
    """Integers of the second layer depend on whether the first is rounded."""
    found = []
    for passes in (1, None):
        result = quantize(
            toy, batches, bits="W2A4", rounding="gptq",
            rounding_passes=passes, progress=False,
        )  # fmt: skip
        found.append(toy.units[3].weight_values.clone())
        result.restore()
    assert not torch.equal(*found)


@pytest.mark.parametrize("stop_after", [0, 7, 20])
def test_an_interruption_leaves_the_float_model(toy, batches, stop_after):
    state, calls = state_of(toy), []

    def forward(model, x):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(any(isinstance(m, QuantizedModule) for m in model.units))
        return model(x)

    with pytest.raises(KeyboardInterrupt):
        quantize(
            toy, batches, forward, bits="W3", rounding="gptq", progress=False
        )
    assert any(calls) == (stop_after == 20)
    assert_float(toy, state)


def test_deterministic(toy, batches):
    states = []
    for _ in range(2):
        result = quantize(
            toy, batches, bits="W3A8", rounding="gptq", progress=False
        )
        states.append(state_of(toy))
        result.restore()
    first, second = states
    assert list(first) == list(second)
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.parametrize("bits", ["W3", "W4A8"])
def test_a_checkpoint_brings_the_integers_back(toy, batches, bits, tmp_path):
    result = quantize(
        toy, batches, bits=bits, rounding="gptq", progress=False, **GROUPS
    )
    path = save_quantized(toy, tmp_path / "m.ckpt", result.plan)
    twin = load_quantized(Toy().eval(), path)
    state = state_of(toy)
    assert all(torch.equal(v, state[k]) for k, v in twin.state_dict().items())
    with torch.no_grad():
        assert torch.equal(twin(batches[0]), toy(batches[0]))


def test_inputs_that_are_all_zero(toy):
    zeros = [torch.zeros(2, 9, 24)]
    toy.names.weight.data.zero_()
    toy.conv.bias.data.zero_()
    found = state_after(toy, zeros, bits="W4", rounding="gptq")
    expected = state_after(toy, zeros, bits="W4")
    key = "conv.weight_values"
    assert torch.equal(found[key], expected[key])


def state_after(model, batches, **knobs):
    result = quantize(model, batches, progress=False, **knobs)
    state = state_of(model)
    result.restore()
    return state


def test_tied_weights_stay_tied(toy, batches):
    toy.units[2].weight = toy.units[0].weight
    result = quantize(toy, batches, bits="W3", rounding="gptq", progress=False)
    first, third = toy.units[0], toy.units[2]
    assert torch.equal(first.weight_values, third.weight_values)
    for name in ("units.0", "units.2"):
        assert result.plan.layers[name].rounding == "nearest"
    details = {row.name: row.detail for row in result.coverage.rows}
    assert "shares its weight" in details["units.0.weight"]


def test_floats_of_16_bits_are_left_to_the_nearest(toy, batches):
    result = quantize(
        toy, batches, bits="W4", rounding="gptq", progress=False,
        layer_bits={"head": "W16", "units.0": "W32"},
    )  # fmt: skip
    assert result.plan.layers["head"].rounding == "nearest"
    assert "units.0" not in result.plan.layers
    assert toy.head.weight_values.dtype == torch.bfloat16


def test_a_generator_is_kept(toy, batches):
    """Rounding goes through the data several times."""
    knobs = {"bits": "W4", "rounding": "gptq", "progress": False}
    result = quantize(toy, batches, **knobs)
    wanted = {n: m.weight_values for n, m in quantized_layers(toy)}
    result.restore()
    quantize(toy, iter(batches), **knobs)
    found = dict(quantized_layers(toy))
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name].weight_values, values), name


def test_data_is_needed(toy):
    assert Settings(bits="W4", method="uniform", rounding="gptq").needs_data
    assert not Settings(bits="W4", method="uniform").needs_data
    with pytest.raises(CalibrationError, match="rounding: gptq needs"):
        quantize(toy, bits="W4", rounding="gptq", progress=False)


def test_a_plan_alone_does_not_bring_integers_back(toy, batches, tmp_path):
    result = quantize(toy, batches, bits="W4", rounding="gptq", progress=False)
    path = result.plan.save(tmp_path / "plan.json")
    result.restore()
    with pytest.raises(PlanError, match="'rounding' to 'nearest'"):
        quantize(toy, batches, plan=path, progress=False)
    text = path.read_text().replace(
        '"rounding": "gptq"', '"rounding": "nearest"'
    )
    path.write_text(text)
    assert json.loads(text)["layers"]
    again = quantize(toy, plan=path, progress=False)
    assert again.plan.layers["head"].rounding == "nearest"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rounding": "gtpq"}, "Did you mean 'gptq'"),
        ({"rounding_passes": 0}, "rounding_passes is 0"),
        ({"rounding_passes": 1.5}, "whole number"),
        ({"rounding": "gptq", "plan": "plan.json"}, "given"),
    ],
)
def test_knobs(knobs, message):
    with pytest.raises(KnobError, match=message):
        Settings(**knobs)


def test_searches_do_not_depend_on_it():
    other = Settings(rounding="gptq", rounding_passes=3)
    assert other.search_identity() == Settings().search_identity()
