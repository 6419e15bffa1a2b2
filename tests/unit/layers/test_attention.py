"""Attention: the decomposed and the quantized version against torch's."""

import copy

import pytest
import torch
from speechbrain.nnet.attention import (
    MultiheadAttention,
    RelPosMHAXL,
    RoPEMHA,
)
from torch import nn

from speechbrain_stablequant.errors import PlanError
from speechbrain_stablequant.layers import Conversion, QuantizedModule
from tests.unit.layers import helpers

BATCH, TIME, KEYS, HEADS, SIZE = 2, 5, 7, 4, 16
CAUSAL = torch.ones(TIME, KEYS, dtype=torch.bool).triu(3)
PADDING = torch.zeros(BATCH, KEYS, dtype=torch.bool)
PADDING[1, 5:] = True
FLOATS = torch.linspace(-2, 2, TIME * KEYS).reshape(TIME, KEYS).cos()
MASKS = {
    "none": {},
    "bool-2d": {"attn_mask": CAUSAL},
    "float-2d": {"attn_mask": FLOATS},
    "bool-3d": {"attn_mask": CAUSAL.expand(BATCH * HEADS, -1, -1)},
    "float-3d": {"attn_mask": torch.stack([FLOATS * h for h in range(8)])},
    "padding": {"key_padding_mask": PADDING},
    "float-padding": {"key_padding_mask": PADDING.float() * -1e4},
    "both": {"attn_mask": CAUSAL, "key_padding_mask": PADDING},
}
WEIGHTS = {
    "no-weights": {"need_weights": False},
    "average": {"need_weights": True},
    "each-head": {"need_weights": True, "average_attn_weights": False},
}


def inputs(batch_first, kdim=SIZE, vdim=SIZE):
    x = [
        torch.randn(BATCH, TIME, SIZE),
        torch.randn(BATCH, KEYS, kdim),
        torch.randn(BATCH, KEYS, vdim),
    ]
    return x if batch_first else [t.transpose(0, 1) for t in x]


def assert_same_function(module, *args, **kwargs):
    """Preparing a module changes its outputs by rounding only."""
    module.eval()
    with torch.no_grad():
        expected = module(*args, **kwargs)
        with Conversion(module):
            assert type(module).__name__.startswith("Decomposed")
            found = module(*args, **kwargs)
    for a, b in zip(found, expected):
        if b is None:
            assert a is None
            continue
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False], ids=["bt", "tb"])
def test_decomposed_equals_torch(mask, weights, batch_first):
    module = nn.MultiheadAttention(SIZE, HEADS, batch_first=batch_first)
    kwargs = {**MASKS[mask], **WEIGHTS[weights]}
    assert_same_function(module, *inputs(batch_first), **kwargs)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_other_key_and_value_sizes(weights, bias):
    module = nn.MultiheadAttention(SIZE, HEADS, bias=bias, kdim=12, vdim=10)
    x = inputs(False, kdim=12, vdim=10)
    assert_same_function(module, *x, **WEIGHTS[weights])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_a_batch(weights):
    module = nn.MultiheadAttention(SIZE, HEADS)
    x = [t[:, 0] for t in inputs(False)]
    mask = {"attn_mask": CAUSAL, "key_padding_mask": PADDING[1]}
    assert_same_function(module, *x, **mask, **WEIGHTS[weights])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_causal_hint(weights):
    module = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
    x = torch.randn(BATCH, TIME, SIZE)
    mask = nn.Transformer.generate_square_subsequent_mask(TIME)
    hint = {"is_causal": True, **WEIGHTS[weights]}
    assert_same_function(module, x, x, x, attn_mask=mask, **hint)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="attn_mask"):
            module(x, x, x, **hint)
        Conversion(module)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_what_has_no_decomposed_version_is_left_alone(option):
    module = nn.MultiheadAttention(
        SIZE, HEADS, batch_first=True, **{option: True}
    ).eval()
    x = torch.randn(BATCH, TIME, SIZE)
    expected = helpers.output(module, x, x, x)
    conversion = Conversion(module)
    assert torch.equal(helpers.output(module, x, x, x), expected)
    with pytest.raises(PlanError, match=option):
        conversion.set("", helpers.layer_plan(module, QuantizedModule, 8, None))


class Scaled(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        out, weights = super().forward(*args, **kwargs)
        return 3 * out, weights


class Named(nn.MultiheadAttention):
    """A subclass that changes nothing about ``forward``."""


def test_a_subclass_with_its_own_forward_keeps_it():
    module = Scaled(SIZE, HEADS, batch_first=True).eval()
    x = torch.randn(BATCH, TIME, SIZE)
    expected = helpers.output(module, x, x, x)
    with Conversion(module) as conversion:
        assert torch.equal(helpers.output(module, x, x, x), expected)
        with pytest.raises(PlanError, match="forward of its own"):
            conversion.set(
                "", helpers.layer_plan(module, QuantizedModule, 8, None)
            )


def test_a_subclass_without_one_is_decomposed():
    module = Named(SIZE, HEADS, batch_first=True)
    x = torch.randn(BATCH, TIME, SIZE)
    assert_same_function(module, x, x, x)
    helpers.check_contract(module, x, x, x)
    conversion = helpers.convert(module)
    assert isinstance(module, Named)
    conversion.restore()
    assert type(module) is Named


def test_output_is_torchs_on_rounded_values():
    module = nn.MultiheadAttention(SIZE, HEADS, batch_first=True).eval()
    twin = copy.deepcopy(module)
    x = [helpers.fake_input(t) for t in inputs(True)]
    with torch.no_grad():
        twin.in_proj_weight.copy_(helpers.rounded_rows(module.in_proj_weight))
        expected, _ = twin(*x)
    conversion = Conversion(module)
    plan = helpers.layer_plan(module, QuantizedModule, 8, None)
    plan = helpers.LayerPlan(
        plan.weight,
        weight_observer="max",
        inputs=dict.fromkeys(("query", "key", "value"), helpers.INPUT),
    )
    conversion.set("", plan)
    conversion.quantize()
    assert not isinstance(module.out_proj, QuantizedModule)
    # Inputs that are levels already stay what they are.
    found = helpers.output(module, *x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kdim", [None, 12], ids=["one", "three"])
def test_contract_and_export(kdim):
    module = nn.MultiheadAttention(
        SIZE, HEADS, kdim=kdim, vdim=kdim, batch_first=True
    )
    x = inputs(True, kdim or SIZE, kdim or SIZE)
    helpers.check_contract(module, *x)
    helpers.check_export(module, *x)


X = torch.linspace(-3, 3, BATCH * TIME * SIZE).sin().reshape(BATCH, TIME, SIZE)
TOOLKIT = {
    "regularMHA": (lambda: MultiheadAttention(HEADS, SIZE), ()),
    "RelPosMHAXL": (
        lambda: RelPosMHAXL(SIZE, HEADS),
        (torch.randn(1, 2 * TIME - 1, SIZE),),
    ),
    "RoPEMHA": (lambda: RoPEMHA(SIZE, HEADS), ()),
}


@pytest.mark.parametrize("name", TOOLKIT)
def test_attention_of_speechbrain(name):
    make, more = TOOLKIT[name]
    module = make()
    helpers.check_contract(module, X, X, X, *more)
    raw = [
        n
        for n, p in module.named_parameters()
        if p.dim() > 1 and "pos_bias" not in n
    ]
    assert raw
    conversion = helpers.convert(module)
    left = [n for n, p in module.named_parameters() if p.dim() > 1]
    assert not [n for n in left if "pos_bias" not in n]
    conversion.restore()
