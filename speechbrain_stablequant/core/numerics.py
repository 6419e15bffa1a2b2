"""Quantize, dequantize, scales: the arithmetic, on plain tensors.

Weights are handled as *rows*: a matrix with one row per output channel. What
turns a layer's weight into rows and back is the layer's business.

One definition holds everywhere: ``q = clamp(round(x / scale) + zero_point)``
with ties to even, and ``x' = (q - zero_point) * scale``. Odd levels differ in
the rounding alone, see `round_to_levels`. The integers and the scales define a
quantized tensor; nothing else does.
"""

import math
from typing import NamedTuple, Optional

import torch

from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.errors import StableQuantError

__all__ = [
    "Quantized",
    "dequantize",
    "fake_quantize",
    "integer_dtype",
    "quantize",
    "quantize_with",
    "range_to_scale",
    "repeat_groups",
    "round_to_levels",
    "row_scales",
    "split_groups",
]


class Quantized(NamedTuple):
    """Integers with what is needed to read them.

    Arguments
    ---------
    values : torch.Tensor
        (channels, n), int8 or uint8; bfloat16 or float16 for 16 bits.
    scale : torch.Tensor, optional
        (channels, groups) float32; (1, 1) per tensor; None for 16 bits.
    zero_point : torch.Tensor, optional
        Same shape as ``scale``, int8 or uint8; None when symmetric.
    """

    values: torch.Tensor
    scale: Optional[torch.Tensor]
    zero_point: Optional[torch.Tensor]


def integer_dtype(scheme: QuantizationScheme) -> torch.dtype:
    """Return the tensor type that holds a scheme's values in memory."""
    if scheme.is_float:
        return getattr(torch, scheme.dtype)
    return torch.int8 if scheme.signed else torch.uint8


def range_to_scale(low: torch.Tensor, high: torch.Tensor, scheme):
    """Turn ranges into scales and zero points.

    Arguments
    ---------
    low : torch.Tensor
        Lower ends, any shape; taken as at most zero.
    high : torch.Tensor
        Upper ends, same shape; taken as at least zero.
    scheme : QuantizationScheme
        Integer scheme to map to.

    Returns
    -------
    scale : torch.Tensor
        float32, positive everywhere, also for an empty range.
    zero_point : torch.Tensor
        int32, 0 when symmetric.

    Example
    -------
    >>> scheme = QuantizationScheme(
    ...     bits=8, symmetric=False, signed=False, narrow_range=False
    ... )
    >>> scale, zero = range_to_scale(
    ...     torch.tensor(-1.0), torch.tensor(1.55), scheme
    ... )
    >>> round(float(scale), 4), int(zero)
    (0.01, 100)
    """
    low = low.to(torch.float32).clamp(max=0)
    high = high.to(torch.float32).clamp(min=0)
    if scheme.symmetric:
        if not scheme.signed and bool((low < 0).any()):
            raise StableQuantError(
                "A symmetric unsigned scheme cannot hold the negative value "
                f"{float(low.min()):.4g}: use symmetric: False or signed: True."
            )
        scale = torch.maximum(-low, high) / scheme.qmax
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
    else:
        scale = (high - low) / (scheme.qmax - scheme.qmin)
    tiny = torch.finfo(torch.float32).tiny
    # Without a level for zero, a row of zeros needs a scale next to zero.
    empty = tiny if scheme.is_odd else 1.0
    scale = torch.where(scale > tiny, scale, torch.full_like(scale, empty))
    if not scheme.symmetric:
        zero_point = torch.round(scheme.qmin - low / scale)
        zero_point = zero_point.clamp(scheme.qmin, scheme.qmax).to(torch.int32)
    return scale, zero_point


def round_to_levels(steps, scheme: QuantizationScheme, zero_point=None):
    """Round real values, in units of the scale, to integers of a scheme.

    Arguments
    ---------
    steps : torch.Tensor
        Real values over their scale, any shape, floating point.
    scheme : QuantizationScheme
        Integer scheme.
    zero_point : torch.Tensor, optional
        Broadcasts to ``steps``; None when symmetric.

    Returns
    -------
    torch.Tensor
        Integers between ``qmin`` and ``qmax``, in the type of ``steps``.

    Example
    -------
    >>> steps = torch.tensor([-9.0, -1.2, 0.0, 0.4, 2.1])
    >>> round_to_levels(steps, QuantizationScheme(bits=2)).tolist()
    [-1.0, -1.0, 0.0, 0.0, 1.0]
    >>> odd = QuantizationScheme(bits=2, levels="odd")
    >>> round_to_levels(steps, odd).tolist()
    [-3.0, -1.0, 1.0, 1.0, 3.0]
    """
    if scheme.is_binary:
        return torch.where(steps >= 0, 1.0, -1.0)
    if scheme.is_odd:
        q = torch.floor(steps / 2).mul_(2).add_(1)
    else:
        q = torch.round(steps)
        if zero_point is not None:
            q = q + zero_point
    return q.clamp_(scheme.qmin, scheme.qmax)


def quantize_with(x, scale, zero_point, scheme):
    """Turn real values into integers, with given scales that broadcast.

    Returns
    -------
    torch.Tensor
        Same shape as ``x``, of the type given by `integer_dtype`.
    """
    steps = x.to(torch.float32) / scale
    q = round_to_levels(steps, scheme, zero_point)
    return q.to(integer_dtype(scheme))


def split_groups(rows: torch.Tensor, scheme: QuantizationScheme):
    """View (channels, n) rows as (channels, groups, values in a group).

    The last group is filled up with its own last value. Per tensor, everything
    is one group.
    """
    if scheme.granularity == "per_tensor":
        return rows.reshape(1, 1, -1)
    channels, n = rows.shape
    size = min(scheme.group_size or n, n)
    groups = math.ceil(n / size)
    missing = groups * size - n
    if missing:
        rows = torch.cat([rows, rows[:, -1:].expand(-1, missing)], dim=1)
    return rows.reshape(channels, groups, size)


def quantize(rows, scheme, observer="max", percentile=99.99) -> Quantized:
    """Quantize rows of weights.

    Arguments
    ---------
    rows : torch.Tensor
        (channels, n) real values.
    scheme : QuantizationScheme
        What to quantize to.
    observer : str
        Rule for the ranges: ``max``, ``mse`` or ``percentile``.
    percentile : float
        For the ``percentile`` rule: what part of the absolute values of a
        channel is inside its range.

    Returns
    -------
    Quantized
        Integers and scales.

    Raises
    ------
    StableQuantError
        If a value is not finite.

    Example
    -------
    >>> rows = torch.tensor([[1.0, -0.5, 0.25], [8.0, 0.0, -8.0]])
    >>> q = quantize(rows, QuantizationScheme(bits=8))
    >>> q.values.tolist()
    [[127, -64, 32], [127, 0, -127]]
    """
    if not bool(torch.isfinite(rows).all()):
        raise StableQuantError("The weight has values that are not finite.")
    if scheme.is_float:
        return Quantized(rows.to(integer_dtype(scheme)), None, None)
    grouped = split_groups(rows.detach().to(torch.float32), scheme)
    scale, zero_point = row_scales(grouped, scheme, observer, percentile)
    if scheme.granularity == "per_group":
        uneven = rows.shape[1] % grouped.shape[-1]
        if uneven:
            # What the last group was filled up with must not count.
            last = rows[:, None, -uneven:].detach().to(torch.float32)
            scale[:, -1:], zero_point[:, -1:] = row_scales(
                last, scheme, observer, percentile
            )
    values = quantize_with(
        grouped, scale[..., None], zero_point[..., None], scheme
    )
    if scheme.granularity == "per_tensor":
        values = values.reshape(rows.shape)
    else:
        values = values.flatten(1)[:, : rows.shape[1]].contiguous()
    if scheme.symmetric:
        return Quantized(values, scale, None)
    return Quantized(values, scale, zero_point.to(integer_dtype(scheme)))


def dequantize(quantized: Quantized, scheme: QuantizationScheme):
    """Turn integers back into float32 rows, (channels, n)."""
    values, scale, zero_point = quantized
    if scheme.is_float:
        return values.to(torch.float32)
    assert scale is not None  # integers always come with one
    count = values.shape[1]
    real = values.to(scale.dtype)
    if zero_point is not None:
        zero_point = repeat_groups(zero_point, count, scheme)
        real = real - zero_point.to(scale.dtype)
    return real * repeat_groups(scale, count, scheme)


def repeat_groups(values: torch.Tensor, count: int, scheme) -> torch.Tensor:
    """Repeat a value for each group so that it broadcasts to rows.

    Arguments
    ---------
    values : torch.Tensor
        (channels, groups), or (1, 1) per tensor: scales or zero points.
    count : int
        Values in a row; the last group may have fewer than the others.
    scheme : QuantizationScheme
        Scheme of the rows.
    """
    if values.shape[1] == 1:
        return values
    return values.repeat_interleave(scheme.group_size, dim=1)[:, :count]


def fake_quantize(x, scale, zero_point, scheme):
    """Quantize and dequantize an activation, per tensor.

    The gradient goes straight through, within the range that is kept.

    Arguments
    ---------
    x : torch.Tensor
        Any shape, floating point.
    scale : torch.Tensor
        One float32 value.
    zero_point : torch.Tensor
        One int32 value.
    scheme : QuantizationScheme
        Per-tensor scheme.

    Returns
    -------
    torch.Tensor
        Same shape and type as ``x``.
    """
    if scheme.is_float:
        return x.to(integer_dtype(scheme)).to(x.dtype)
    if scheme.is_odd or scheme.is_binary:
        # PyTorch's operator rounds to consecutive integers; levels without a
        # zero are written out.
        steps = x.to(torch.float32) / scale
        levels = round_to_levels(steps, scheme) * scale
        if x.requires_grad and torch.is_grad_enabled():
            inside = x.clamp(scheme.qmin * scale, scheme.qmax * scale)
            # Adds zero, but passes the gradient on to what is not clamped.
            levels = levels + (inside - inside.detach())
        return levels.to(x.dtype)
    # The operator exists for float32 only on some devices; scales stay float32.
    real = torch.fake_quantize_per_tensor_affine(
        x.to(torch.float32), scale, zero_point, scheme.qmin, scheme.qmax
    )
    return real.to(x.dtype)


def row_scales(grouped, scheme, observer="max", percentile=99.99):
    """Choose a scale and zero point for each group of weights.

    Arguments
    ---------
    grouped : torch.Tensor
        (channels, groups, values in a group), float32.
    scheme : QuantizationScheme
        Integer scheme.
    observer : str
        ``max``, ``mse`` (shrink the range where that lowers the squared
        error) or ``percentile``.
    percentile : float
        For the ``percentile`` rule.

    Returns
    -------
    scale : torch.Tensor
        (channels, groups) float32.
    zero_point : torch.Tensor
        (channels, groups) int32.
    """
    if scheme.is_binary:
        # The scale of least squared error once the signs are given (XNOR-Net).
        scale = grouped.abs().mean(-1)
        # There is no zero: a row of zeros gets levels that come close to it.
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if observer == "percentile":
        # kthvalue, not quantile: the latter refuses large tensors.
        count = grouped.shape[-1]
        rank = min(count, max(1, math.ceil(count * percentile / 100)))
        cut = grouped.abs().kthvalue(rank, dim=-1).values
        low, high = torch.maximum(low, -cut), torch.minimum(high, cut)
    if observer != "mse":
        return range_to_scale(low, high, scheme)
    return _least_squares(grouped, low, high, scheme)


def _least_squares(grouped, low, high, scheme, steps=40, smallest=0.1):
    """Shrink each group's range where that lowers its squared error."""
    best_scale, best_zero = range_to_scale(low, high, scheme)
    best = torch.full_like(low, math.inf)
    # A grid, not a minimizer: the error has many local minima in the range.
    for step in range(steps):
        shrink = 1.0 - (1.0 - smallest) * step / steps
        scale, zero = range_to_scale(low * shrink, high * shrink, scheme)
        zero_point = zero[..., None]
        q = round_to_levels(grouped / scale[..., None], scheme, zero_point)
        q.sub_(zero_point)
        error = q.mul_(scale[..., None]).sub_(grouped).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero
