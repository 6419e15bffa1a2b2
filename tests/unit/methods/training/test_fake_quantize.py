"""Fake quantization with learned steps: values, and both gradients."""

import math

import pytest
import torch

from speechbrain_stablequant.core.numerics import quantize_with
from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.methods.training.fake_quantize import (
    fake_quantize_learned,
    step_gradient_scale,
)

SCHEMES = {
    "int8": QuantizationScheme(bits=8),
    "int4": QuantizationScheme(bits=4),
    "int2": QuantizationScheme(bits=2, narrow_range=False),
    "ternary": QuantizationScheme(bits=2, levels="ternary"),
    "odd2": QuantizationScheme(bits=2, levels="odd"),
    "binary": QuantizationScheme(bits=1),
}


@pytest.fixture(params=SCHEMES, name="scheme")
def _scheme(request):
    return SCHEMES[request.param]


def values(seed=0, shape=(6, 40)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inside(real, scheme):
    """Return what is at most half a step beyond the last levels."""
    margin = scheme.level_step / 2
    return (real >= scheme.qmin - margin) & (real <= scheme.qmax + margin)


def test_values_are_those_of_the_integers(scheme):
    x = values()
    step = torch.linspace(0.1, 0.6, 6)[:, None]
    found = fake_quantize_learned(x, step.log(), scheme)
    step = step.log().exp()
    integers = quantize_with(x, step, None, scheme)
    assert torch.equal(found, integers.to(torch.float32) * step)


def test_affine_inputs_keep_their_zero_point():
    scheme = QuantizationScheme(
        bits=4, symmetric=False, signed=False, narrow_range=False
    )
    zero = torch.tensor(3, dtype=torch.int32)
    x, step = values(), torch.tensor(0.2)
    found = fake_quantize_learned(x, step.log(), scheme, zero)
    assert found.min() >= -3 * 0.2 - 1e-6
    assert found.max() <= 12 * 0.2 + 1e-6
    assert 0.0 in found


def test_the_gradient_of_values_stops_where_they_saturate(scheme):
    x = values().requires_grad_()
    step = torch.tensor(0.4)
    fake_quantize_learned(x, step.log(), scheme).sum().backward()
    assert torch.equal(x.grad, inside(x / 0.4, scheme).float())
    assert scheme.bits == 8 or 0 < x.grad.mean() < 1


def test_the_gradient_of_a_step_is_that_of_lsq(scheme):
    """Equation 3 of the paper, times the step: its logarithm is learned."""
    x, weights = values(), values(1)
    log_step = torch.full((6, 1), math.log(0.3)).requires_grad_()
    found = fake_quantize_learned(x, log_step, scheme, gradient_scale=0.5)
    (found * weights).sum().backward()
    real = x / 0.3
    levels = quantize_with(x, torch.tensor(0.3), None, scheme).float()
    per_value = torch.where(inside(real, scheme), levels - real, levels)
    expected = (weights * per_value * 0.3).sum(1, keepdim=True) * 0.5
    torch.testing.assert_close(log_step.grad, expected, rtol=1e-4, atol=1e-5)


def test_one_step_for_all_has_the_sum_of_the_gradients(scheme):
    x, weights = values(), values(1)
    rows = torch.full((6, 1), math.log(0.3)).requires_grad_()
    one = torch.tensor(math.log(0.3)).requires_grad_()
    for log_step in (rows, one):
        found = fake_quantize_learned(x, log_step, scheme)
        (found * weights).sum().backward()
    torch.testing.assert_close(rows.grad.sum(), one.grad, rtol=1e-4, atol=1e-4)


def test_a_smaller_error_is_found_by_descent():
    """The step of least squared error, from one that is far off."""
    x, scheme = values(shape=(1, 4000)), SCHEMES["int4"]
    log_step = torch.tensor([[math.log(1.5)]]).requires_grad_()
    optimizer = torch.optim.Adam([log_step], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        error = (fake_quantize_learned(x, log_step, scheme) - x).square().mean()
        error.backward()
        optimizer.step()
    grid = torch.linspace(0.1, 1.5, 141)
    errors = [
        float((fake_quantize_learned(x, s.log(), scheme) - x).square().mean())
        for s in grid
    ]
    assert float(error) < 1.02 * min(errors)


def test_half_precision_stays_half():
    x = values().to(torch.bfloat16).requires_grad_()
    found = fake_quantize_learned(x, torch.tensor(-1.0), SCHEMES["int8"])
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_gradient_scale_is_that_of_lsq():
    assert step_gradient_scale(100, SCHEMES["int4"]) == 1 / math.sqrt(700)
