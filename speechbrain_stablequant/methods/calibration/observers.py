"""Observers: from a histogram of activations to the range that is kept.

The definitions are those of NVIDIA's pytorch-quantization, the library that
the StableQuant paper (https://arxiv.org/abs/2504.14915) appears to build on:
``max``, ``percentile``, ``mse`` and ``entropy``. All look at absolute values;
an affine scheme keeps the part of [minimum, maximum] inside the cut.
"""

from typing import Optional

import torch

from speechbrain_stablequant.core.numerics import range_to_scale
from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.core.plan import InputPlan, QuantizationScheme
from speechbrain_stablequant.core.registry import Registry
from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.methods.calibration.histogram import (
    ActivationHistogram,
)

__all__ = ["OBSERVERS", "TAIL_RULES", "choose_input", "expected_error"]

TAIL_RULES = ("drop", "fold")
_SMALLEST = 32  # a cut below 1/32 of the range is not tried (NVIDIA's: 1/16)
_CANDIDATES = 512  # of the cut; the error is smooth in between


def choose_input(
    histogram: ActivationHistogram,
    scheme: QuantizationScheme,
    observer: str = "mse",
    percentile: float = 100.0,
    tail: str = "drop",
) -> InputPlan:
    """Choose the range of an input.

    Arguments
    ---------
    histogram : ActivationHistogram
        What calibration saw.
    scheme : QuantizationScheme
        Per-tensor scheme of the input.
    observer : str
        ``max``: the largest absolute value. ``percentile``: the smallest cut
        that keeps ``percentile`` % of the values. ``mse``: least squared
        error. ``entropy``: least Kullback-Leibler divergence, as in TensorRT.
    percentile : float
        For ``mse`` and ``entropy``: cut the histogram there first (100: no
        cut). For ``percentile``: the percentile itself.
    tail : str
        What becomes of the values beyond that first cut: ``drop`` forgets
        them, ``fold`` counts them in the last bin that is kept.

    Returns
    -------
    InputPlan
        The range, with what led to it.

    Raises
    ------
    CalibrationError
        If the histogram is empty.

    Example
    -------
    >>> histogram = ActivationHistogram()
    >>> histogram.observe(torch.linspace(-1, 1, 1001))
    >>> histogram.observe(torch.tensor([50.0]))
    >>> scheme = QuantizationScheme(bits=8, granularity="per_tensor")
    >>> choose_input(histogram, scheme, "max").high
    50.0
    >>> round(choose_input(histogram, scheme, "percentile", 99.5).high, 1)
    1.0
    """
    check_choice("observer", observer, OBSERVERS)
    check_choice("tail", tail, TAIL_RULES)
    if histogram.count == 0:
        raise CalibrationError("Calibration saw no values of this input.")
    if scheme.symmetric and not scheme.signed and histogram.minimum < 0:
        raise CalibrationError(
            "A symmetric unsigned scheme cannot hold negative values, such as "
            f"{histogram.minimum:.4g}: use an affine or a signed one."
        )
    cut = _cut(histogram, scheme, observer, percentile, tail)
    signed = scheme.symmetric and scheme.signed
    return InputPlan(
        scheme=scheme,
        low=-cut if signed else _low(histogram, cut),
        high=cut if scheme.symmetric else min(max(histogram.maximum, 0.0), cut),
        observer=observer,
        percentile=float(percentile) if observer != "max" else 100.0,
        clipped=_clipped(histogram, cut),
    )


def _cut(histogram, scheme, observer, percentile, tail) -> float:
    """Return the largest absolute value that is kept."""
    counts, amax = histogram.magnitudes(), histogram.amax
    if scheme.is_binary:
        # Two levels have no range to choose: -a and a with a the mean of |x|
        # have the least squared error (XNOR-Net).
        return float((counts * _centres(histogram)).sum() / counts.sum())
    if amax == 0 or scheme.is_float:
        return amax
    limit = _percentile_bin(counts, percentile)
    if observer in ("mse", "entropy") and limit is not None:
        counts = _cut_tail(counts, limit, tail)
    top = int(counts.nonzero().max()) + 1
    return OBSERVERS[observer](histogram, counts, limit, top, scheme, tail)


def expected_error(histogram: ActivationHistogram, plan: InputPlan) -> float:
    """Return the mean squared error of an input, relative to its power.

    Arguments
    ---------
    histogram : ActivationHistogram
        What calibration saw; values beyond the range are charged in full.
    plan : InputPlan
        The range and scheme.

    Returns
    -------
    float
        0 for no error, 1 for an error as strong as the signal.
    """
    if histogram.amax == 0:
        return 0.0
    x = _signed_centres(histogram)
    weights = _signed_counts(histogram)
    scale, zero = range_to_scale(
        torch.tensor(plan.low), torch.tensor(plan.high), plan.scheme
    )
    error = _squared_error(x, scale[None], zero[None], plan.scheme)[0]
    power = float((weights * x.double().square()).sum())
    return float((weights * error.double()).sum()) / power if power else 0.0


# -- the rules: (histogram, counts, cut bin, top bin, scheme, tail) -> cut ------


def _max(histogram, counts, limit, top, scheme, tail) -> float:
    return histogram.amax


def _percentile(histogram, counts, limit, top, scheme, tail) -> float:
    if limit is None:
        return histogram.amax
    return min((limit + 1) * histogram.width, histogram.amax)


def _mse(histogram, counts, limit, top, scheme, tail) -> float:
    candidates = _candidates(top)
    cuts = (candidates.to(torch.float32) + 0.5) * histogram.width
    cuts = cuts.clamp(max=histogram.amax)
    if scheme.symmetric:
        x = _centres(histogram)[:top]
        weights = counts[:top]
        low = -cuts if scheme.signed else torch.zeros_like(cuts)
        high = cuts
    else:
        # The sign matters now; the cut of the tail applies to both signs.
        x = _signed_centres(histogram)
        weights = _signed_counts(histogram).view(2, -1)
        if limit is not None:
            weights = torch.stack([_cut_tail(w, limit, tail) for w in weights])
        weights = weights.flatten()
        low = (-cuts).clamp(min=min(histogram.minimum, 0.0))
        high = cuts.clamp(max=max(histogram.maximum, 0.0))
    scale, zero = range_to_scale(low, high, scheme)
    error = _squared_error(x, scale, zero, scheme)
    cost = error.double() @ weights.double()
    return float(cuts[int(cost.argmin())])


def _entropy(histogram, counts, limit, top, scheme, tail) -> float:
    levels = 2 ** (scheme.bits - int(scheme.signed and scheme.symmetric))
    counts = counts[:top].double()
    if top > 1:
        # As NVIDIA's does: zeros say nothing about the range.
        counts[0] = counts[1]
    # A cut of fewer bins than levels would lose nothing, and say nothing.
    candidates = [int(c) + 1 for c in _candidates(top, smallest=levels)]
    costs = torch.tensor([_divergence(counts, c, levels) for c in candidates])
    # Of equal costs the last, which clips least.
    best = len(costs) - 1 - int(costs.flip(0).argmin())
    return min(candidates[best] * histogram.width, histogram.amax)


OBSERVERS = Registry(
    "observer", ("histogram", "counts", "limit", "top", "scheme", "tail")
)
OBSERVERS.update(max=_max, percentile=_percentile, mse=_mse, entropy=_entropy)


# -- helpers -----------------------------------------------------------------------


def _centres(histogram):
    bins = torch.arange(histogram.counts.shape[1], dtype=torch.float32)
    return (bins + 0.5) * histogram.width


def _signed_centres(histogram):
    centres = _centres(histogram)
    return torch.cat([centres, -centres])


def _signed_counts(histogram):
    counts = histogram.counts.clone()
    counts[0, 0] += histogram._zeros
    return counts.flatten()


def _low(histogram, cut):
    return max(min(histogram.minimum, 0.0), -cut)


def _percentile_bin(counts, percentile: float) -> Optional[int]:
    """Return the bin where the wanted share is reached, None for all."""
    if percentile >= 100:
        return None
    # Not as shares of 1: 99.9 / 100 is a little more than 0.999.
    reached = counts.cumsum(0).double() * 100
    return int(torch.searchsorted(reached, percentile * float(counts.sum())))


def _cut_tail(counts, limit: int, tail: str):
    kept = counts.clone()
    kept[limit + 1 :] = 0
    if tail == "fold":
        kept[limit] += counts[limit + 1 :].sum()
    return kept


def _clipped(histogram, cut: float) -> float:
    if cut >= histogram.amax:
        return 0.0
    counts = histogram.magnitudes()
    lower_edges = _centres(histogram) - histogram.width / 2
    return float(counts[lower_edges >= cut].sum() / counts.sum())


def _candidates(top: int, smallest: int = 1) -> torch.Tensor:
    """Return the last bins of about 512 ranges, the full one included."""
    first = min(max(smallest, top // _SMALLEST), top) - 1
    step = max(1, (top - first) // _CANDIDATES)
    return torch.arange(top - 1, first - 1, -step).flip(0)


def _squared_error(x, scale, zero, scheme) -> torch.Tensor:
    """Return squared errors, (candidates, values)."""
    scale, zero = scale[:, None], zero[:, None]
    q = torch.round(x[None] / scale).add_(zero)
    q.clamp_(scheme.qmin, scheme.qmax).sub_(zero)
    return q.mul_(scale).sub_(x[None]).square_()


def _divergence(counts, bins: int, levels: int) -> float:
    """Return the divergence of ``levels`` even steps over the first bins."""
    reference = counts[:bins].clone()
    used = reference > 0
    index = torch.arange(bins) * levels // bins
    total = torch.zeros(levels, dtype=torch.float64)
    total.index_add_(0, index, reference)
    members = torch.zeros(levels, dtype=torch.float64)
    members.index_add_(0, index, used.double())
    coarse = torch.where(used, (total / members.clamp(min=1))[index], 0.0)
    # As saturation does: what is beyond the cut counts in its last bin, but
    # only in the reference, so that clipping has a price.
    reference[-1] += counts[bins:].sum()
    p, q = reference / reference.sum(), coarse / coarse.sum().clamp(min=1)
    # Where only the tail is, q is 0 and the divergence infinite.
    seen = reference > 0
    p, q = p[seen], q[seen]
    return float((p * (p / q).log()).sum())
