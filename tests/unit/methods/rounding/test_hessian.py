"""Hessians agree with inputs that are unfolded by hand."""

import pytest
import torch
import torch.nn.functional as F
from speechbrain.nnet.attention import RelPosMHAXL
from torch import nn

from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.layers import Conversion, quantized_class
from speechbrain_stablequant.methods.rounding import (
    HessianCollector,
    why_no_hessian,
)
from speechbrain_stablequant.methods.rounding import hessian as hessian_module
from tests.unit.layers.helpers import AFFINE_INPUT, INPUT, fake_input

CONVOLUTIONS = {
    "plain": (nn.Conv1d(4, 6, 3), (2, 4, 11)),
    "all knobs": (
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        (2, 4, 15),
    ),
    "same": (nn.Conv1d(4, 4, 4, padding="same", groups=4), (3, 4, 9)),
    "reflect": (
        nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"),
        (2, 4, 9),
    ),
    "circular": (
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
        (2, 4, 9),
    ),
    "no batch": (nn.Conv1d(4, 6, 3), (4, 9)),
    "2d": (
        nn.Conv2d(
            4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1),
            groups=2,
        ),
        (2, 4, 9, 7),
    ),
    "2d no batch": (nn.Conv2d(2, 3, 3), (2, 6, 5)),
    "transposed": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 7)),
    "transposed, all options": (
        nn.ConvTranspose1d(
            4, 6, 4, stride=3, padding=2, output_padding=1, groups=2,
            dilation=2,
        ),
        (2, 4, 7),
    ),
}  # fmt: skip


def plan(inputs=None):
    return LayerPlan(QuantizationScheme(bits=4), inputs=inputs or {})


def collect(layer, *calls, inputs=None):
    """Return the Hessians of a layer that was called a few times."""
    layers = {"layer": (layer, plan(inputs))}
    with torch.no_grad(), HessianCollector(layers) as seen:
        for arguments in calls:
            layer(*arguments)
    return seen.hessians("layer")


def quadratic(layer, name, hessians, change):
    """Return the squared error that a changed weight makes, by the Hessian."""
    rows = quantized_class(layer).to_rows(layer, name, change)
    parts = zip(rows.chunk(len(hessians)), hessians)
    return sum(torch.einsum("in,nm,im->", part, h, part) for part, h in parts)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_error_of_a_convolution_is_the_quadratic_form(kind):
    layer, shape = CONVOLUTIONS[kind]
    x, change = torch.randn(shape), torch.randn_like(layer.weight)
    found = collect(layer, (x,), (2 * x,))["weight"]
    with torch.no_grad():
        before = layer(x)
        layer.weight += change
        error = (layer(x) - before).square().sum() * 5
        layer.weight -= change
    torch.testing.assert_close(
        quadratic(layer, "weight", found, change), error, rtol=1e-4, atol=1e-3
    )


def test_patches_of_groups_are_those_of_unfold():
    layer = nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2)
    x = torch.randn(2, 4, 12)
    columns = F.unfold(
        x[:, :, None], (1, 3), (1, 2), padding=(0, 1), stride=(1, 2)
    )
    first, second = columns.transpose(0, 1).flatten(1).chunk(2)
    found = collect(layer, (x,))["weight"]
    torch.testing.assert_close(found[0], first @ first.T)
    torch.testing.assert_close(found[1], second @ second.T)


@pytest.mark.parametrize("inputs", [INPUT, AFFINE_INPUT])
def test_inputs_are_those_that_the_quantized_layer_sees(inputs):
    layer = nn.Linear(8, 3)
    x = 3 * torch.randn(2, 5, 8)
    found = collect(layer, (x,), inputs={"input": inputs})["weight"]
    seen = fake_input(x, inputs).reshape(-1, 8)
    torch.testing.assert_close(found[0], seen.T @ seen)


def test_attention_has_one_for_each_projection():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    q, k = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    other = InputPlan(INPUT.scheme, -2.0, 2.0)
    inputs = {"query": INPUT, "key": other, "value": other}
    with Conversion(layer):
        found = collect(layer, (q, k, k), inputs=inputs)["in_proj_weight"]
    for part, x, how in zip(found, (q, k, k), inputs.values()):
        seen = fake_input(x, how).reshape(-1, 8)
        torch.testing.assert_close(part, seen.T @ seen)


def test_attention_with_keys_of_another_size():
    layer = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    q, k, v = torch.randn(5, 2, 8), torch.randn(7, 2, 6), torch.randn(7, 2, 4)
    with Conversion(layer):
        found = collect(layer, (q, k, v))
    sizes = {name: tuple(h.shape) for name, h in found.items()}
    assert sizes == {
        "q_proj_weight": (1, 8, 8),
        "k_proj_weight": (1, 6, 6),
        "v_proj_weight": (1, 4, 4),
    }


def test_relative_attention():
    layer = RelPosMHAXL(8, 2)
    x, positions = torch.randn(2, 5, 8), torch.randn(1, 9, 8)
    found = collect(layer, (x, x, x, positions))["in_proj_weight"]
    flat = x.reshape(-1, 8)
    torch.testing.assert_close(found, (flat.T @ flat).expand(3, 8, 8))


def test_a_tensor_changed_in_place_is_another_one():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    layers = {"0": (first, plan()), "1": (second, plan())}
    x = torch.randn(6, 4)
    with torch.no_grad(), HessianCollector(layers) as seen:
        first(x)
        x.mul_(2)
        second(x)
    before, after = (seen.hessians(name)["weight"] for name in "01")
    torch.testing.assert_close(after, 4 * before)


def test_inference_mode():
    layer, x = nn.Linear(4, 4), torch.randn(6, 4)
    layers = {"0": (layer, plan())}
    with torch.inference_mode(), HessianCollector(layers) as seen:
        layer(x * 1)
    torch.testing.assert_close(seen.hessians("0")["weight"][0], x.T @ x)


def test_no_hook_stays_and_what_was_not_reached_is_none():
    layer = nn.Linear(4, 4)
    assert collect(layer) is None
    assert not layer._forward_pre_hooks


def test_inputs_that_are_not_finite():
    with pytest.raises(CalibrationError, match="'layer', input 'input'"):
        collect(nn.Linear(4, 4), (torch.full((2, 4), float("inf")),))


def test_layers_without_a_hessian(monkeypatch):
    assert "LSTM" in why_no_hessian(nn.LSTM(4, 4))
    assert "Embedding" in why_no_hessian(nn.Embedding(4, 4))
    wide = nn.Conv1d(64, 64, 4, groups=4)
    assert why_no_hessian(wide) is None
    monkeypatch.setattr(hessian_module, "MAX_NUM_BYTES", 4 * 4 * 64 * 64 - 1)
    assert "MiB" in why_no_hessian(wide)


def test_sums_are_in_float32_under_autocast():
    layer, x = nn.Linear(4, 4), torch.randn(600, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = collect(layer, (x,))["weight"][0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.T @ x)
