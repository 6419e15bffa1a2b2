"""GPTQ on plain tensors."""

import pytest
import torch

from speechbrain_stablequant.core.numerics import (
    Quantized,
    dequantize,
    quantize,
    quantize_with,
)
from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.methods.rounding import gptq
from speechbrain_stablequant.methods.rounding.gptq import inverse_factor

SCHEMES = {
    "per channel": {},
    "per tensor": {"granularity": "per_tensor"},
    "groups": {"granularity": "per_group", "group_size": 16},
    "uneven groups": {"granularity": "per_group", "group_size": 24},
    "affine": {"symmetric": False, "narrow_range": False},
    "affine groups": {
        "symmetric": False,
        "narrow_range": False,
        "granularity": "per_group",
        "group_size": 16,
    },
}


def correlated(n=64, positions=512, rank=16, seed=3):
    """Return inputs of a few directions and some noise, and their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, n, generator=generator)
    x = torch.randn(positions, rank, generator=generator) @ mixing
    x = x + 0.3 * torch.randn(positions, n, generator=generator)
    return x, x.T @ x


def weight(channels=32, n=64, seed=4):
    return torch.randn(
        channels, n, generator=torch.Generator().manual_seed(seed)
    )


def output_error(rows, quantized, scheme, x):
    return float(((dequantize(quantized, scheme) - rows) @ x.T).norm())


def assert_same(found: Quantized, expected: Quantized):
    assert found.values.dtype == expected.values.dtype
    for mine, other in zip(found, expected):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_less_error_at_the_output_than_the_nearest(kind, bits):
    scheme = QuantizationScheme(bits=bits, **SCHEMES[kind])
    x, hessian = correlated()
    rows = weight()
    nearest = output_error(rows, quantize(rows, scheme, "mse"), scheme, x)
    found = gptq(rows, hessian, scheme, "mse")
    assert output_error(rows, found, scheme, x) < 0.7 * nearest


@pytest.mark.parametrize(
    "levels", [(1, "integer"), (2, "odd"), (3, "odd"), (2, "ternary")]
)
def test_levels_other_than_integers(levels):
    scheme = QuantizationScheme(bits=levels[0], levels=levels[1])
    x, hessian = correlated()
    rows = weight()
    plain = quantize(rows, scheme, "mse")
    found = gptq(rows, hessian, scheme, "mse")
    assert set(found.values.unique().tolist()) <= set(
        plain.values.unique().tolist()
    )
    nearest = output_error(rows, plain, scheme, x)
    assert output_error(rows, found, scheme, x) < 0.8 * nearest


@pytest.mark.parametrize("observer", ["max", "mse", "percentile"])
@pytest.mark.parametrize("kind", SCHEMES)
def test_the_nearest_where_inputs_do_not_correlate(kind, observer):
    scheme = QuantizationScheme(bits=3, **SCHEMES[kind])
    rows = weight()
    expected = quantize(rows, scheme, observer, 99.0)
    found = gptq(rows, 5 * torch.eye(64), scheme, observer, 99.0)
    assert_same(found, expected)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_single_input(bits):
    scheme = QuantizationScheme(bits=bits)
    rows = weight(n=1)
    found = gptq(rows, torch.tensor([[3.0]]), scheme)
    assert_same(found, quantize(rows, scheme))


def naive(rows, hessian, scheme, damping):
    """Return integers by optimal brain quantization in a fixed order.

    After each input the inverse of what is left is computed anew, in float64.
    """
    scale = quantize(rows, scheme).scale
    left = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    left = left.tolist()
    eye = torch.eye(len(left), dtype=torch.float64)
    damped = hessian.double()
    damped = damped + damping * damped.diagonal().mean() * eye
    work, values = rows.double().clone(), torch.zeros_like(rows).to(torch.int8)
    while left:
        first, inverse = left[0], damped[left][:, left].inverse()
        q = quantize_with(work[:, first, None], scale, None, scheme)
        values[:, first] = q[:, 0]
        error = work[:, first] - (q * scale)[:, 0].double()
        work[:, left] -= error[:, None] / inverse[0, 0] * inverse[0]
        left = left[1:]
    return values


@pytest.mark.parametrize("block_size", [1, 5, 128])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_agrees_with_the_definition(n, block_size):
    scheme = QuantizationScheme(bits=3)
    _, hessian = correlated(n=n, rank=2)
    rows = weight(n=n)
    found = gptq(rows, hessian, scheme, damping=0.02, block_size=block_size)
    assert torch.equal(found.values, naive(rows, hessian, scheme, 0.02))


@pytest.mark.parametrize("kind", ["per channel", "groups", "uneven groups"])
def test_blocks_do_not_change_the_result(kind):
    scheme = QuantizationScheme(bits=4, **SCHEMES[kind])
    _, hessian = correlated()
    rows = weight()
    whole = gptq(rows, hessian, scheme, "mse")
    for block_size in (1, 7, 40):
        found = gptq(rows, hessian, scheme, "mse", block_size=block_size)
        same = (found.values == whole.values).float().mean()
        assert float(same) > 0.99


@pytest.mark.parametrize("kind", SCHEMES)
def test_inputs_that_are_always_zero(kind):
    scheme = QuantizationScheme(bits=4, **SCHEMES[kind])
    rows = weight()
    assert_same(gptq(rows, torch.zeros(64, 64), scheme), quantize(rows, scheme))
    x, _ = correlated()
    x[:, 10:20] = 0
    found = gptq(rows, x.T @ x, scheme)
    plain = quantize(rows, scheme)
    assert torch.equal(found.values[:, 10:20], plain.values[:, 10:20])
    assert output_error(rows, found, scheme, x) < output_error(
        rows, plain, scheme, x
    )


def test_parts_have_hessians_of_their_own():
    scheme = QuantizationScheme(bits=3)
    hessians = torch.stack([correlated(seed=seed)[1] for seed in (1, 2)])
    rows = weight()
    found = gptq(rows, hessians, scheme, "mse")
    halves = [
        gptq(part, hessian, scheme, "mse")
        for part, hessian in zip(rows.chunk(2), hessians)
    ]
    for index, tensor in enumerate(found[:2]):
        assert torch.equal(tensor, torch.cat([h[index] for h in halves]))
    tensor = QuantizationScheme(bits=3, granularity="per_tensor")
    assert gptq(rows, hessians, tensor).scale.shape == (1, 1)


def test_input_is_left_alone_and_runs_agree():
    scheme = QuantizationScheme(bits=3, granularity="per_group", group_size=16)
    _, hessian = correlated()
    rows = weight()
    copies = rows.clone(), hessian.clone()
    first, second = (gptq(rows, hessian, scheme, "mse") for _ in range(2))
    assert_same(first, second)
    assert torch.equal(rows, copies[0])
    assert torch.equal(hessian, copies[1])


def test_16_bit_floats_are_rounded_to_the_nearest():
    scheme = QuantizationScheme(bits=16)
    rows = weight()
    assert_same(gptq(rows, correlated()[1], scheme), quantize(rows, scheme))


def test_a_singular_hessian_is_damped_until_it_can_be_factorized():
    x = torch.ones(4, 8)
    factor = inverse_factor(x.T @ x, 0.0)
    assert bool(torch.isfinite(factor).all())
    # Rounding errors may leave a matrix that is slightly negative.
    bent = torch.eye(8) - 0.15 * torch.ones(8, 8)
    assert float(torch.linalg.eigvalsh(bent).min()) < 0
    assert bool(torch.isfinite(inverse_factor(bent, 0.01)).all())


@pytest.mark.parametrize(
    ("rows", "hessian", "message"),
    [
        (weight(), torch.eye(63), "has shape"),
        (weight(channels=31), torch.eye(64).repeat(2, 1, 1), "equal parts"),
        (weight(), torch.full((64, 64), float("nan")), "Hessian .*not finite"),
        (weight() / 0, torch.eye(64), "weight .*not finite"),
        (weight(), torch.eye(64) - 1e6 * (1 - torch.eye(64)), "factorized"),
    ],
)
def test_what_cannot_be_rounded(rows, hessian, message):
    with pytest.raises(StableQuantError, match=message):
        gptq(rows, hessian, QuantizationScheme(bits=4))
