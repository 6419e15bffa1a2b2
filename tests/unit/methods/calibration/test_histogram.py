"""Histograms: the same counts whatever the order and the batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.methods.calibration import ActivationHistogram
from speechbrain_stablequant.methods.calibration.histogram import NUM_BINS

values = st.one_of(
    st.floats(-1, 1, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-(2.0**-120), 2.0**-120, width=32),
    st.just(0.0),
)


def histogram_of(*batches):
    histogram = ActivationHistogram()
    for batch in batches:
        histogram.observe(torch.as_tensor(batch, dtype=torch.float32))
    return histogram


@given(
    data=st.lists(values, min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    random=st.randoms(use_true_random=False),
)
def test_order_and_batches_do_not_matter(data, cuts, random):
    whole = histogram_of(data)
    assert whole.count == len(data)
    shuffled = random.sample(data, len(data))
    ends = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    parts = [shuffled[a:b] for a, b in zip(ends, ends[1:])]
    assert histogram_of(*parts) == whole
    merged = ActivationHistogram()
    for part in parts:
        merged.merge(histogram_of(part))
    assert merged == whole
    assert merged.count == whole.count


@given(data=st.lists(values, min_size=1, max_size=40))
def test_bins_hold_what_they_say(data):
    histogram = histogram_of(data)
    magnitudes = torch.tensor(data).double().abs()
    assert float(magnitudes.max()) < histogram.width * NUM_BINS
    bins = (magnitudes / histogram.width).long()
    expected = torch.bincount(bins, minlength=NUM_BINS)
    assert torch.equal(histogram.magnitudes(), expected)
    assert (histogram.minimum, histogram.maximum) == (
        pytest.approx(min(data), rel=1e-6),
        pytest.approx(max(data), rel=1e-6),
    )


def test_a_different_value_makes_a_different_histogram():
    assert histogram_of([1.0, 0.5]) != histogram_of([1.0, -0.5])
    assert histogram_of([1.0, 0.5]) != histogram_of([1.0])


def test_memory_does_not_grow():
    histogram = histogram_of([1e-30])
    for exponent in range(-30, 30):
        histogram.observe(torch.randn(100) * 10.0**exponent)
        assert histogram.counts.shape == (2, NUM_BINS)
    assert histogram.count == 6001


def test_many_values_at_once_equal_few():
    x = torch.randn((1 << 20) + 5)
    assert histogram_of(x) == histogram_of(*x.split(100_000))


def test_zeros_only():
    histogram = histogram_of([0.0, 0.0], [0.0])
    assert (histogram.count, histogram.amax) == (3, 0.0)
    assert histogram.magnitudes()[0] == 3
    histogram.observe(torch.tensor([5.0]))
    assert histogram == histogram_of([5.0, 0.0, 0.0, 0.0])


def test_nothing_seen():
    histogram = histogram_of([])
    assert (histogram.count, histogram.amax) == (0, 0.0)
    histogram.merge(ActivationHistogram())
    assert histogram == ActivationHistogram()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_and_not_counted(bad):
    histogram = histogram_of([1.0])
    with pytest.raises(CalibrationError, match="not finite"):
        histogram.observe(torch.tensor([2.0, bad]))
    assert histogram == histogram_of([1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_are_counted_by_value(dtype):
    x = torch.tensor([[1, -2], [3, 0]], dtype=dtype)
    assert histogram_of(x) == histogram_of([1.0, -2.0, 3.0, 0.0])
