"""Quantize and dequantize against a definition written with Python floats."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.core.numerics import (
    dequantize,
    fake_quantize,
    integer_dtype,
    quantize,
    quantize_with,
    range_to_scale,
    round_to_levels,
)
from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.errors import StableQuantError

GRANULARITIES = [("per_tensor", None), ("per_channel", None), ("per_group", 3)]
SCHEMES = [
    QuantizationScheme(
        bits=bits,
        symmetric=symmetric,
        signed=signed,
        granularity=granularity,
        group_size=size,
        narrow_range=narrow,
    )
    for bits, symmetric, signed, (granularity, size), narrow in (
        itertools.product(
            range(1, 9),
            (True, False),
            (True, False),
            GRANULARITIES,
            (True, False),
        )
    )
]
NOT_INTEGER = [
    QuantizationScheme(
        bits, granularity=granularity, group_size=size, levels=levels
    )
    for levels, bits in (
        *(("odd", bits) for bits in range(1, 5)),
        ("ternary", 2),
    )
    for granularity, size in GRANULARITIES
]
SCHEMES += NOT_INTEGER
TINY = torch.finfo(torch.float32).tiny


def name_of(scheme):
    narrow = "narrow" if scheme.narrow_range else "full"
    return f"{scheme.describe()} {narrow}".replace(" ", "-")


def rows_for(scheme, channels=4, n=8):
    """Random rows with zeros, large and small values; 8 = 3 + 3 + 2."""
    rows = torch.randn(channels, n) * torch.tensor([[1.0], [30], [1e-3], [0]])
    rows[0, 2] = 0.0
    return rows.abs() if scheme.symmetric and not scheme.signed else rows


def reference(rows, scheme):
    """Return integers and real values by the definition, value by value."""
    channels, n = rows.shape
    size = {"per_tensor": channels * n, "per_channel": n}.get(
        scheme.granularity, scheme.group_size
    )
    values, real = torch.zeros(channels, n), torch.zeros(channels, n)
    scales = torch.zeros(channels, n)
    flat = rows.flatten().tolist()
    rowwise = scheme.granularity != "per_tensor"
    starts = [
        (start, min(start + size, end))
        for first, end in (
            [(c * n, (c + 1) * n) for c in range(channels)]
            if rowwise
            else [(0, channels * n)]
        )
        for start in range(first, end, size)
    ]
    for start, end in starts:
        scale, zero = reference_scale(flat[start:end], scheme)
        for i in range(start, end):
            steps = torch.tensor(flat[i]).div(scale).item()
            q = round(steps) + zero
            if scheme.is_odd:
                q = 2 * math.floor(steps / 2) + 1
            q = min(max(q, scheme.qmin), scheme.qmax)
            values[i // n, i % n] = q
            real[i // n, i % n] = (q - zero) * scale
            scales[i // n, i % n] = scale
    return values, real, scales


def reference_scale(values, scheme):
    """Return a scale in float32 and a zero point, as Python numbers."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    if scheme.symmetric:
        scale, steps = max(-low, high), scheme.qmax
    else:
        scale, steps = high - low, scheme.qmax - scheme.qmin
    empty = TINY if scheme.is_odd else 1.0
    scale = torch.tensor(scale).div(steps).item() or empty
    if scheme.symmetric:
        return scale, 0
    zero = round(scheme.qmin - torch.tensor(low).div(scale).item())
    return scale, min(max(zero, scheme.qmin), scheme.qmax)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
class TestEveryScheme:
    def test_zero_is_a_level_and_the_range_fits_the_bits(self, scheme):
        if scheme.is_odd or scheme.is_binary:
            levels = range(scheme.qmin, scheme.qmax + 1, scheme.level_step)
            assert len(levels) == 2**scheme.bits
            assert sum(levels) == 0
            assert all(level % 2 for level in levels)
            return
        low = -(2 ** (scheme.bits - 1)) if scheme.signed else 0
        assert low <= scheme.qmin < scheme.qmax <= low + 2**scheme.bits - 1
        assert not scheme.symmetric or scheme.qmin <= 0 <= scheme.qmax

    def test_agrees_with_the_definition(self, scheme):
        rows = rows_for(scheme)
        quantized = quantize(rows, scheme)
        real = dequantize(quantized, scheme)
        assert quantized.values.dtype == integer_dtype(scheme)
        assert quantized.values.shape == real.shape == rows.shape
        if scheme.is_binary:
            signs = torch.where(rows >= 0, 1.0, -1.0)
            assert torch.equal(quantized.values.float(), signs)
            return
        values, expected, _ = reference(rows, scheme)
        assert torch.equal(quantized.values.float(), values)
        torch.testing.assert_close(real, expected, rtol=1e-6, atol=0)

    def test_error_is_at_most_half_a_step(self, scheme):
        if scheme.is_binary:
            pytest.skip("two levels have no step")
        rows = rows_for(scheme)
        quantized = quantize(rows, scheme)
        assert int(quantized.values.min()) >= scheme.qmin
        assert int(quantized.values.max()) <= scheme.qmax
        _, _, scale = reference(rows, scheme)
        error = (dequantize(quantized, scheme) - rows).abs()
        step = scale * scheme.level_step
        assert bool((error <= step * 0.5 * (1 + 1e-5)).all())

    def test_mse_never_loses_to_max(self, scheme):
        rows = rows_for(scheme)
        errors = {
            observer: (
                dequantize(quantize(rows, scheme, observer), scheme) - rows
            )
            .square()
            .sum()
            .item()
            for observer in ("max", "mse")
        }
        assert errors["mse"] <= errors["max"] * (1 + 1e-6)


def test_ties_go_to_even():
    scheme = QuantizationScheme(bits=8, granularity="per_tensor")
    rows = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert quantize(rows, scheme).values.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_a_cast(dtype):
    scheme = QuantizationScheme(bits=16, dtype=dtype)
    rows = torch.randn(3, 5)
    quantized = quantize(rows, scheme)
    cast = rows.to(getattr(torch, dtype))
    assert torch.equal(quantized.values, cast)
    assert quantized.scale is None
    assert torch.equal(dequantize(quantized, scheme), cast.float())


def test_filling_up_a_group_does_not_count_in_its_mean():
    scheme = QuantizationScheme(1, granularity="per_group", group_size=4)
    rows = torch.tensor([[1.0, 1, 1, 1, 2, 5]])
    assert quantize(rows, scheme).scale.tolist() == [[1.0, 3.5]]


def test_one_bit_is_the_sign_times_the_mean():
    rows = torch.tensor([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    quantized = quantize(rows, QuantizationScheme(bits=1))
    assert quantized.values.tolist() == [[1, -1, 1], [1, 1, 1]]
    assert quantized.scale[0].item() == pytest.approx(4 / 3)


@given(
    scheme=st.sampled_from(NOT_INTEGER),
    steps=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=50),
)
def test_rounding_is_to_the_nearest_level(scheme, steps):
    steps = torch.tensor(steps)
    levels = torch.arange(scheme.qmin, scheme.qmax + 1, scheme.level_step)
    nearest = (steps[:, None] - levels).abs().amin(1)
    rounded = round_to_levels(steps, scheme)
    assert bool(torch.isin(rounded, levels.float()).all())
    torch.testing.assert_close((rounded - steps).abs(), nearest)


def test_one_bit_odd_is_binary():
    rows = torch.randn(3, 20)
    odd = quantize(rows, QuantizationScheme(1, levels="odd"), "mse")
    binary = quantize(rows, QuantizationScheme(1), "mse")
    assert torch.equal(odd.values, binary.values)
    assert torch.equal(odd.scale, binary.scale)


def test_two_odd_bits_lose_less_of_gaussian_weights_than_three_levels():
    rows = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    errors = {}
    for levels in ("integer", "ternary", "odd"):
        scheme = QuantizationScheme(2, levels=levels)
        real = dequantize(quantize(rows, scheme, "mse"), scheme)
        errors[levels] = float((real - rows).square().mean())
    # Uniform quantizers of a unit Gaussian: 0.1188 with 4 levels (Max, 1960),
    # 0.1902 with 3.
    assert errors["odd"] == pytest.approx(0.1188, abs=2e-3)
    assert errors["ternary"] == pytest.approx(0.1902, abs=2e-3)
    assert errors["ternary"] == errors["integer"]


@pytest.mark.parametrize("bits", range(1, 5))
def test_fake_quantize_knows_odd_levels(bits):
    scheme = QuantizationScheme(bits, granularity="per_tensor", levels="odd")
    x = torch.linspace(-5, 5, 101).requires_grad_()
    scale = torch.tensor(0.25)
    fake = fake_quantize(x, scale, torch.tensor(0), scheme)
    expected = quantize_with(x.detach(), scale, None, scheme) * scale
    torch.testing.assert_close(fake, expected, rtol=1e-6, atol=1e-6)
    fake.sum().backward()
    inside = x.detach().abs() < scheme.qmax * scale
    assert torch.equal(x.grad[inside], torch.ones(int(inside.sum())))


@pytest.mark.parametrize("value", [5.0, -0.25, 1e-20, -3e38])
def test_a_single_value_is_kept(value):
    for symmetric in (True, False):
        scheme = QuantizationScheme(bits=4, symmetric=symmetric)
        real = dequantize(quantize(torch.tensor([[value]]), scheme), scheme)
        assert real.item() == pytest.approx(value, rel=1e-6)


def test_values_of_the_uneven_last_group_get_their_own_scale():
    scheme = QuantizationScheme(bits=8, granularity="per_group", group_size=4)
    rows = torch.tensor([[100.0, 1, 1, 1, 0.01]])
    quantized = quantize(rows, scheme)
    assert quantized.scale.shape == (1, 2)
    real = dequantize(quantized, scheme)
    assert real[0, 4].item() == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_values_that_are_not_finite_are_refused(bad, bits):
    with pytest.raises(StableQuantError, match="not finite"):
        quantize(torch.tensor([[1.0, bad]]), QuantizationScheme(bits=bits))


def test_a_symmetric_unsigned_scheme_refuses_negative_values():
    scheme = QuantizationScheme(signed=False)
    with pytest.raises(StableQuantError, match="-2"):
        quantize(torch.tensor([[1.0, -2.0]]), scheme)


def test_percentile_leaves_out_the_outlier():
    rows = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([100.0])])[None]
    scheme = QuantizationScheme(bits=8)
    scale = quantize(rows, scheme, "percentile", 99.9).scale
    assert scale.item() == pytest.approx(1 / 127, rel=1e-3)
    assert quantize(rows, scheme, "percentile", 100).scale * 127 == 100


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    signed=st.booleans(),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    high=st.floats(0.0078125, 1024, width=32),
)
def test_fake_quantize_is_quantize_then_dequantize(
    bits, symmetric, signed, values, high
):
    scheme = QuantizationScheme(
        bits, symmetric, signed, "per_tensor", narrow_range=False
    )
    low = 0.0 if symmetric and not signed else -high / 2
    scale, zero = range_to_scale(torch.tensor(low), torch.tensor(high), scheme)
    x = torch.tensor(values)
    q = quantize_with(x, scale, zero, scheme)
    expected = (q.float() - zero) * scale
    fake = fake_quantize(x, scale, zero, scheme)
    # The operator multiplies by 1 / scale: only a value that is a tie up to
    # rounding may come out one level apart.
    steps = x.double() / scale.double()
    tie = ((steps - steps.floor()) - 0.5).abs() < 1e-6 * (1 + steps.abs())
    assert torch.equal(fake[~tie], expected[~tie])
    assert bool(((fake - expected).abs() <= scale * 1.001).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fake_quantize_keeps_the_type_of_its_input(dtype):
    scheme = QuantizationScheme(granularity="per_tensor")
    scale, zero = torch.tensor(0.5), torch.tensor(0, dtype=torch.int32)
    x = torch.tensor([0.6, 100.0], dtype=dtype)
    fake = fake_quantize(x, scale, zero, scheme)
    assert fake.dtype == dtype
    assert fake.tolist() == [0.5, 63.5]


@pytest.mark.parametrize("bits", [1, 16])
def test_fake_quantize_of_one_and_sixteen_bits(bits):
    scheme = QuantizationScheme(bits=bits, granularity="per_tensor")
    x = torch.tensor([0.3, -0.7, 0.0])
    fake = fake_quantize(x, torch.tensor(2.0), torch.tensor(0), scheme)
    expected = x.bfloat16().float()
    if bits == 1:
        expected = torch.tensor([2.0, -2.0, 2.0])
    assert torch.equal(fake, expected)
