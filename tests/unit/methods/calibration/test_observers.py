"""Observers against slow references that follow pytorch-quantization."""

import math

import pytest
import torch

from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.errors import CalibrationError, KnobError
from speechbrain_stablequant.methods.calibration import (
    ActivationHistogram,
    choose_input,
    expected_error,
)
from speechbrain_stablequant.methods.calibration.observers import _divergence

DATA = {
    "normal": lambda: torch.randn(20_000),
    "heavy": lambda: torch.randn(20_000) ** 5,
    "relu": lambda: torch.randn(20_000).relu(),
    "outliers": lambda: torch.cat([torch.randn(20_000), torch.tensor([300.0])]),
    "shifted": lambda: torch.randn(20_000) + 2,
}
KINDS = {"symmetric": (True, True), "affine": (False, False)}


def seen(x):
    histogram = ActivationHistogram()
    histogram.observe(x)
    return histogram


def scheme_of(bits=8, symmetric=True, signed=True):
    return QuantizationScheme(
        bits, symmetric, signed, "per_tensor", narrow_range=symmetric and signed
    )


def rounded(x, low, high, scheme):
    """Quantize and dequantize by the definition, in double precision."""
    if scheme.symmetric:
        scale, zero = max(-low, high) / scheme.qmax, 0
    else:
        scale = (high - low) / (scheme.qmax - scheme.qmin)
        zero = round(scheme.qmin - low / scale)
    q = (x / scale).round() + zero
    return (q.clamp(scheme.qmin, scheme.qmax) - zero) * scale


def brute_force(x, scheme, cuts):
    """Return the least mean squared error over many cuts of the range."""
    x = x.double()
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    errors = []
    for cut in cuts:
        ends = (-cut, cut)
        if not scheme.symmetric:
            ends = (max(low, -cut), min(high, cut))
        errors.append((rounded(x, *ends, scheme) - x).square().mean().item())
    return min(errors)


@pytest.mark.parametrize("data", DATA)
def test_max_is_the_largest_value(data):
    x = DATA[data]()
    plan = choose_input(seen(x), scheme_of(), "max")
    assert plan.high == -plan.low == float(x.abs().max())
    assert plan.clipped == 0
    affine = choose_input(seen(x), scheme_of(8, False, False), "max")
    assert affine.low == min(float(x.min()), 0.0)
    assert affine.high == float(x.max())


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 99.99])
@pytest.mark.parametrize("data", DATA)
def test_percentile_keeps_that_share(data, percentile):
    x = DATA[data]()
    histogram = seen(x)
    plan = choose_input(histogram, scheme_of(), "percentile", percentile)
    rank = max(1, math.ceil(len(x) * percentile / 100))
    exact = float(x.abs().sort().values[rank - 1])
    assert plan.high == pytest.approx(exact, abs=1.01 * histogram.width)
    outside = float((x.abs() > plan.high).float().mean())
    assert plan.clipped == pytest.approx(outside, abs=1e-4)
    assert plan.percentile == percentile


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("data", DATA)
def test_mse_is_as_good_as_brute_force(data, bits, kind):
    x = DATA[data]()
    scheme = scheme_of(bits, *KINDS[kind])
    plan = choose_input(seen(x), scheme, "mse")
    found = rounded(x.double(), plan.low, plan.high, scheme)
    error = (found - x).square().mean().item()
    top = float(x.abs().max())
    best = brute_force(x, scheme, [top * i / 300 for i in range(10, 301)])
    assert error <= best * 1.03
    worst = choose_input(seen(x), scheme, "max")
    by_max = rounded(x.double(), worst.low, worst.high, scheme)
    assert error <= (by_max - x).square().mean().item() * 1.01


def reference_divergence(counts, bins, levels):
    """SpeechBrain's loop: digitize, average, compare with scipy's entropy."""
    total, members = [0.0] * levels, [0] * levels
    for i in range(bins):
        if counts[i]:
            total[i * levels // bins] += counts[i]
            members[i * levels // bins] += 1
    q = [
        total[i * levels // bins] / members[i * levels // bins]
        if counts[i]
        else 0.0
        for i in range(bins)
    ]
    p = list(counts[:bins])
    p[-1] += sum(counts[bins:])
    result = 0.0
    for a, b in zip(p, q):
        if a and not b:
            return math.inf
        if a:
            a, b = a / sum(p), b / sum(q)
            result += a * math.log(a / b)
    return result


@pytest.mark.parametrize("bins", [8, 13, 20, 40])
def test_divergence_is_speechbrain(bins):
    counts = (torch.randn(40) * 4).abs().floor().double()
    counts[12] = 0
    expected = reference_divergence(counts.tolist(), bins, 8)
    assert _divergence(counts, bins, 8) == pytest.approx(expected)


def test_entropy_does_not_cut_where_no_values_are():
    x = torch.cat([torch.rand(5000), torch.full((50,), 7.9)])
    plan = choose_input(seen(x), scheme_of(4), "entropy")
    counts = seen(x).magnitudes()
    last = math.ceil(plan.high / seen(x).width) - 1
    assert counts[last] > 0


@pytest.mark.parametrize("data", ["normal", "heavy", "relu"])
def test_entropy_finds_the_least_divergence(data):
    histogram = seen(DATA[data]())
    plan = choose_input(histogram, scheme_of(4), "entropy")
    counts = histogram.magnitudes()
    counts = counts[: int(counts.nonzero().max()) + 1].tolist()
    counts[0] = counts[1]

    def cost(bins):
        return _divergence(torch.tensor(counts).double(), bins, 8)

    mine = cost(min(math.ceil(plan.high / histogram.width), len(counts)))
    others = range(len(counts) // 32 + 1, len(counts), len(counts) // 37)
    assert mine <= min(cost(b) for b in others) + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_tail_costs_nothing_and_a_folded_one_does(kind):
    x = torch.cat([torch.randn(10_000), torch.full((2000,), 20.0)])
    x = x.clamp(min=-0.7)  # else an affine zero point is a tie
    histogram, scheme = seen(x), scheme_of(3, *KINDS[kind])
    edge = choose_input(histogram, scheme, "percentile", 80.0).high
    # What each rule says of the data; the last bin counts at its centre.
    last = edge - histogram.width / 2
    meant = {"drop": x[x.abs() < edge], "fold": x.clamp(-last, last)}
    for tail, data in meant.items():
        plan = choose_input(histogram, scheme, "mse", 80.0, tail)
        assert plan.high <= edge
        found = rounded(data.double(), plan.low, plan.high, scheme)
        error = (found - data).square().mean().item()
        cuts = [edge * i / 300 for i in range(10, 301)]
        assert error <= brute_force(data, scheme, cuts) * 1.05


def test_a_cut_above_all_values_is_no_cut():
    x = torch.randn(1000)
    uncut = choose_input(seen(x), scheme_of(), "mse")
    for tail in ("drop", "fold"):
        plan = choose_input(seen(x), scheme_of(), "mse", 100.0, tail)
        assert (plan.low, plan.high) == (uncut.low, uncut.high)


@pytest.mark.parametrize("observer", ["max", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-20, 1e15])
def test_single_values(observer, value):
    plan = choose_input(seen(torch.tensor([value])), scheme_of(), observer)
    assert plan.high == pytest.approx(abs(value), rel=1e-3)


@pytest.mark.parametrize("observer", ["max", "percentile", "mse", "entropy"])
def test_unsigned_symmetric_inputs(observer):
    x = torch.rand(1000)
    plan = choose_input(seen(x), scheme_of(8, True, False), observer)
    assert plan.low == 0
    assert 0.5 < plan.high <= 1
    with pytest.raises(CalibrationError, match="negative"):
        choose_input(seen(x - 0.5), scheme_of(8, True, False), observer)


def test_one_bit_inputs_use_the_mean():
    x = torch.randn(5000)
    plan = choose_input(seen(x), scheme_of(1), "mse")
    assert plan.high == pytest.approx(float(x.abs().mean()), rel=1e-3)


def test_nothing_seen_is_an_error():
    with pytest.raises(CalibrationError, match="no values"):
        choose_input(ActivationHistogram(), scheme_of())


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"observer": "percentil"}, "percentile"), ({"tail": "dropp"}, "drop")],
    ids=["observer", "tail"],
)
def test_unknown_rules_point_to_the_nearest(wrong, hint):
    with pytest.raises(KnobError, match=hint):
        choose_input(seen(torch.ones(2)), scheme_of(), **wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", DATA)
def test_expected_error_is_the_error_of_the_data(data, kind):
    x = DATA[data]()
    scheme = scheme_of(5, *KINDS[kind])
    plan = choose_input(seen(x), scheme, "percentile", 99.0)
    found = rounded(x.double(), plan.low, plan.high, scheme)
    exact = (found - x).square().sum() / x.double().square().sum()
    assert expected_error(seen(x), plan) == pytest.approx(
        exact.item(), rel=0.03, abs=1e-6
    )


def test_expected_error_of_zeros_is_zero():
    histogram = seen(torch.zeros(4))
    assert expected_error(histogram, choose_input(histogram, scheme_of())) == 0
