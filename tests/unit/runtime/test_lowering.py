"""What a tracer sees of a layer is what reference execution computes."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.runtime.lowering import (
    Lowering,
    lowered,
    planned_int8,
)
from tests.unit.runtime.helpers import Pair, X, quantized, quantized_pair

FRAMES = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "linear": (lambda: nn.Linear(16, 6), FRAMES),
    "conv1d": (lambda: nn.Conv1d(12, 8, 3, groups=2), FRAMES),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3), FRAMES.reshape(2, 3, 8, 8)),
    "deconv": (lambda: nn.ConvTranspose1d(12, 8, 3, groups=4), FRAMES),
    "embedding": (lambda: nn.Embedding(20, 6), torch.arange(12)),
    "lstm": (lambda: nn.LSTM(16, 5, bidirectional=True), FRAMES),
    "attention": (lambda: nn.MultiheadAttention(16, 2), FRAMES),
}
GROUPS = {"weight_granularity": "per_group", "weight_group_size": 8}
SCHEMES = {
    "W8": {"bits": "W8"},
    "W8-tensor": {"bits": "W8", "weight_granularity": "per_tensor"},
    "W8-affine": {"bits": "W8", "weight_symmetric": False},
    "W4-groups": {"bits": "W4", **GROUPS},
    "W4-affine-groups": {"bits": "W4", "weight_symmetric": False, **GROUPS},
    "W3-odd-groups": {"bits": "W3", **GROUPS, "weight_group_size": 5},
    "W2": {"bits": "W2"},
    "W1": {"bits": "W1"},
    "W16": {"bits": "W16"},
}


def call(model, x):
    layer = model[0]
    attention = isinstance(layer, nn.MultiheadAttention)
    y = layer(x, x, x) if attention else layer(x)
    return y[0] if isinstance(y, tuple) else y


def model_of(kind, **knobs):
    make, x = LAYERS[kind]
    return quantized(nn.ModuleList([make()]), x, call, **knobs), x


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, QuantizedModule)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_are_those_of_the_layer(kind, scheme):
    model, x = model_of(kind, **SCHEMES[scheme])
    expected = call(model, x)
    weights = [
        {name: getattr(layer, name) for name in layer._weight_schemes}
        for layer in layers_of(model)
    ]
    for has_int8 in (True, False):
        lowering = Lowering(has_int8=has_int8)
        with lowered(model, lowering):
            assert torch.equal(call(model, x), expected)
            for layer, before in zip(layers_of(model), weights):
                for name, weight in before.items():
                    assert torch.equal(getattr(layer, name), weight)
                    constant = lowering.constant(layer, name)
                    assert constant.values.is_contiguous()
                    assert constant.values.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(
    "scheme", ["W8", "W8-tensor", "W8-affine", "W4-groups"]
)
def test_parts_of_a_weight_are_constants_of_their_own(scheme):
    model, _ = model_of("attention", **SCHEMES[scheme])
    attention = model[0]
    expected = attention.in_proj_weight.chunk(3)
    with lowered(model, Lowering()):
        parts = attention.dequantized_parts("in_proj_weight", 3)
    for part, wanted in zip(parts, expected):
        assert torch.equal(part, wanted)


def test_scales_have_the_axes_along_which_they_change():
    for kind, shape in [
        ("linear", (6, 1)),
        ("conv1d", (8, 1, 1)),
        ("conv2d", (6, 1, 1, 1)),
    ]:
        model, _ = model_of(kind)
        constant = Lowering().constant(model[0], "weight")
        assert constant.scale.shape == shape
        assert constant.axis == 0
        assert constant.values.dtype == torch.int8
        assert constant.zero_point is None
    model, _ = model_of("linear", weight_granularity="per_tensor")
    assert Lowering().constant(model[0], "weight").scale.numel() == 1
    model, _ = model_of("linear", bits="W4", **GROUPS)
    constant = Lowering().constant(model[0], "weight")
    assert constant.values.shape == (6, 2, 8)
    assert constant.axis is None


INPUTS = {
    "signed": {},
    "affine-signed": {"activation_symmetric": False},
    "affine-unsigned": {
        "activation_symmetric": False,
        "activation_signed": False,
    },
}


@pytest.mark.parametrize("bits", ["W8A8", "W8A7", "W8A6", "W8A4", "W8A2"])
@pytest.mark.parametrize("scheme", INPUTS)
def test_inputs_are_quantized_as_planned(scheme, bits):
    pair = quantized_pair(bits=bits, **INPUTS[scheme])
    layer = pair.a
    step = float(layer.input_scale)
    grid = torch.arange(-300, 300) * step  # the levels and what is beyond
    values = torch.cat(
        [grid, grid + 0.3 * step, grid - 0.3 * step, 9 * X[0, 0]]
    )
    expected = layer.quantize_input("input", values)
    with lowered(pair, Lowering()):
        result = layer.quantize_input("input", values)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    assert len(expected.unique()) <= 2 ** int(bits[-1])


@pytest.mark.parametrize("bits", ["W8A16", "W8A1"])
def test_inputs_of_other_schemes_are_left_to_the_definition(bits):
    pair = quantized_pair(bits=bits)
    expected = pair(X)
    with lowered(pair, Lowering()):
        assert torch.equal(pair(X), expected)


@pytest.mark.parametrize(
    ("kind", "bits", "planned"),
    [
        ("linear", "W8A8", True),
        ("linear", "W1A2", True),
        ("conv1d", "W4A6", True),
        ("conv2d", "W8A8", True),
        ("deconv", "W8A8", True),
        ("attention", "W8A8", True),
        ("linear", "W8", False),
        ("linear", "W16A16", False),
        ("linear", "W16A8", False),
        ("linear", "W8A16", False),
        ("linear", "W8A1", False),
        ("embedding", "W8", False),
        ("lstm", "W8", False),
    ],
)
def test_what_is_planned_for_int8(kind, bits, planned):
    model, _ = model_of(kind, bits=bits)
    assert {planned_int8(layer) for layer in layers_of(model)} == {planned}


def test_layers_are_as_before_even_after_an_error():
    pair = quantized_pair()
    before = {n: dict(vars(m)) for n, m in pair.named_modules()}
    expected = pair(X)

    def fail():
        with lowered(pair, Lowering()):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {n: dict(vars(m)) for n, m in pair.named_modules()} == before
    assert torch.equal(pair(X), expected)


def test_only_weights_that_could_overflow_lose_a_bit():
    for bits, reduced in [("W8A8", 2), ("W7A8", 0), ("W4A8", 0), ("W8", 0)]:
        lowering = Lowering(saturates=True)
        pair = quantized_pair(bits=bits)
        expected = pair(X)
        with lowered(pair, lowering):
            assert len(lowering.reduced) == reduced
            assert torch.equal(pair(X), expected) is (reduced == 0)
        assert torch.equal(pair(X), expected)


def test_float_layers_are_not_touched():
    model = Pair().eval()
    before = dict(vars(model.a))
    with lowered(model, Lowering(saturates=True)):
        assert dict(vars(model.a)) == before
