"""GPTQ: rounding that makes up for its own errors.

Rounding to the nearest minimizes the error of each weight. What matters is the
error of the layer's output on real inputs: GPTQ rounds input by input and
moves what one rounding gets wrong onto the weights not yet rounded.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple, Optional

import torch

from speechbrain_stablequant.core.numerics import (
    Quantized,
    dequantize,
    integer_dtype,
    quantize,
    quantize_with,
)
from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.errors import StableQuantError

__all__ = ["gptq", "inverse_factor"]

_ATTEMPTS = 6  # the last one damps by 100 000 times as much as the first

Scales = Sequence[Optional[torch.Tensor]]  # scale, and zero point if affine


def gptq(
    rows: torch.Tensor,
    hessian: torch.Tensor,
    scheme: QuantizationScheme,
    observer: str = "max",
    percentile: float = 99.99,
    damping: float = 0.01,
    block_size: int = 128,
    reorder: bool = True,
) -> Quantized:
    """Quantize rows of weights for the least error of the layer's output.

    E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate
    Post-Training Quantization for Generative Pre-trained Transformers", ICLR
    2023 (arXiv 2210.17323). Inputs of large energy come first, and scales are
    those of the float weights (``act_order`` and ``static_groups`` in the
    authors' code). Where the energy of inputs varies by factors of ten, this
    halves the error; where it does not, it changes little either way.

    Arguments
    ---------
    rows : torch.Tensor
        (channels, n) real values.
    hessian : torch.Tensor
        (n, n): the sum of x x^T over inputs x; any factor cancels. Or
        (parts, n, n), for rows of which equal parts see inputs of their own.
    scheme : QuantizationScheme
        What to quantize to. 16-bit floats are rounded to the nearest.
    observer : str
        Rule for the scales: ``max``, ``mse`` or ``percentile``.
    percentile : float
        For the ``percentile`` rule.
    damping : float
        Added to the diagonal, as a part of its mean; more where that is not
        enough to factorize.
    block_size : int
        Inputs after which an error reaches all that is left. It changes speed,
        and the result only by the rounding errors of sums.
    reorder : bool
        False: inputs in their own order, and the scales of a group chosen when
        its turn comes, from weights as they are then.

    Returns
    -------
    Quantized
        Integers and scales.

    Raises
    ------
    StableQuantError
        If a value is not finite, or shapes do not go together.

    Example
    -------
    >>> rows = torch.tensor([[0.4, 0.4, 1.0]])
    >>> alike = torch.ones(3, 3)  # inputs that are always the same
    >>> scheme = QuantizationScheme(bits=2)
    >>> quantize(rows, scheme).values.tolist()  # the sum falls from 1.8 to 1
    [[0, 0, 1]]
    >>> gptq(rows, alike, scheme).values.tolist()
    [[0, 1, 1]]
    """
    if scheme.is_float or not rows.numel():
        return quantize(rows, scheme, observer, percentile)
    hessians = hessian[None] if hessian.dim() == 2 else hessian
    _check(rows, hessians)
    rows = rows.detach().to(torch.float32)
    rule = _Rule(scheme, observer, percentile, damping, block_size, reorder)
    plain = quantize(rows, scheme, observer, percentile)
    shared = scheme.granularity == "per_tensor"
    parts = []
    for index, part in enumerate(rows.chunk(len(hessians))):
        scales = [
            x if x is None or shared else x.chunk(len(hessians))[index]
            for x in (plain.scale, plain.zero_point)
        ]
        parts.append(_round_part(part, hessians[index], scales, rule))
    values = torch.cat([part.values for part in parts])
    if shared:
        return plain._replace(values=values)
    return Quantized(values, *(_join(x) for x in list(zip(*parts))[1:]))


def _join(tensors, dim: int = 0) -> Optional[torch.Tensor]:
    """Concatenate, unless there are no tensors but None."""
    return None if tensors[0] is None else torch.cat(tensors, dim=dim)


class _Rule(NamedTuple):
    """The arguments of `gptq` that are the same for all parts of a weight."""

    scheme: QuantizationScheme
    observer: str
    percentile: float
    damping: float
    block_size: int
    reorder: bool


def _check(rows: torch.Tensor, hessians: torch.Tensor) -> None:
    """Raise if rows and Hessians are not finite or do not go together."""
    channels, n = rows.shape
    if hessians.shape[1:] != (n, n) or channels % len(hessians):
        raise StableQuantError(
            f"The Hessian has shape {tuple(hessians.shape)}; {channels} rows "
            f"of {n} values need (parts, {n}, {n}), the rows in equal parts."
        )
    for name, tensor in (("weight", rows), ("Hessian", hessians)):
        if not bool(torch.isfinite(tensor).all()):
            raise StableQuantError(
                f"The {name} has values that are not finite."
            )


def _round_part(
    rows: torch.Tensor,
    hessian: torch.Tensor,
    scales: Scales,
    rule: _Rule,
) -> Quantized:
    """Quantize rows that see the same inputs.

    Arguments
    ---------
    rows : torch.Tensor
        (channels, n) float32.
    hessian : torch.Tensor
        (n, n).
    scales : tuple
        Scales and zero points of the float weights, (channels, groups).
    rule : _Rule
        What else `gptq` was given.

    Returns
    -------
    Quantized
        Integers and scales.
    """
    scheme, n = rule.scheme, rows.shape[1]
    size = min(scheme.group_size or n, n)
    order = torch.arange(n, device=rows.device)
    if rule.reorder:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    work = rows[:, order]  # a copy
    groups = (order // size).tolist()
    factor = inverse_factor(hessian[order][:, order], rule.damping)
    moving = not rule.reorder and scheme.granularity == "per_group"
    found: list[Scales] = []

    def scales_at(column: int) -> Scales:
        if not moving:
            group = groups[column]
            return tuple(x if x is None else x[:, group, None] for x in scales)
        if column % size == 0:
            # Chosen by `quantize`: they are then read as its own are.
            group = work[:, column : column + size].contiguous()
            one = dataclasses.replace(scheme, group_size=group.shape[1])
            found.append(quantize(group, one, *rule[1:3])[1:])
        return found[-1]

    blocks = _blocks(n, size if moving else None, rule.block_size)
    rounded = _sweep(work, factor, scheme, scales_at, blocks)
    values = torch.empty_like(rounded)
    values[:, order] = rounded
    if moving:
        scales = [_join(x, dim=1) for x in zip(*found)]
    return Quantized(values, *scales)


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor U of a damped inverse, U^T U.

    Arguments
    ---------
    hessian : torch.Tensor
        (n, n), symmetric, not negative.
    damping : float
        Added to the diagonal, as a part of its mean; ten times as much after
        each failure, in float64 before that.

    Returns
    -------
    torch.Tensor
        (n, n) float32, upper triangular.

    Raises
    ------
    StableQuantError
        If no damping makes the matrix positive.

    Example
    -------
    >>> hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> u = inverse_factor(hessian, 0.0)
    >>> torch.allclose(u.T @ u, hessian.inverse())
    True
    """
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else 1.0
    # An input that is always zero takes no part, and its own weight is rounded
    # to the nearest: zeroing it, as the authors do, may harm on other data.
    dead_part = torch.where(dead, mean, 0.0).to(hessian.dtype)
    for attempt in range(_ATTEMPTS):
        added = dead_part + mean * damping * 10**attempt
        for dtype in (torch.float32, torch.float64):
            damped = (hessian + torch.diag(added)).to(dtype)
            # H = R R^T with R upper is an ordinary Cholesky factorization
            # back to front; the factor of the inverse is then R^-1.
            lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
            if bool(failed.any()):
                continue
            eye = torch.eye(len(damped), dtype=dtype, device=damped.device)
            inverse = torch.linalg.solve_triangular(
                lower.flip(0, 1), eye, upper=True
            )
            if bool(torch.isfinite(inverse).all()):
                return inverse.to(torch.float32)
        damping = damping or 1e-6
    raise StableQuantError(
        "The Hessian cannot be factorized, however much it is damped: it must "
        "be a sum of x x^T over inputs x."
    )


def _blocks(
    n: int, group_size: Optional[int], block_size: int
) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and end; none begins within a smaller group.

    Scales of a group need all errors of what came before: a group lies within
    a block, or begins with one.
    """
    step = block_size
    if group_size is not None:
        step = max(block_size // group_size, 1) * group_size
    for first in range(0, n, step):
        last = min(first + step, n)
        for start in range(first, last, block_size):
            yield start, min(start + block_size, last)


def _sweep(
    work: torch.Tensor,
    factor: torch.Tensor,
    scheme: QuantizationScheme,
    scales_at: Callable[[int], Scales],
    blocks: Iterator[tuple[int, int]],
) -> torch.Tensor:
    """Round column by column and move errors onto those that follow.

    Arguments
    ---------
    work : torch.Tensor
        (channels, n) weights, changed in place.
    factor : torch.Tensor
        (n, n), see `inverse_factor`.
    scheme : QuantizationScheme
        What to round to.
    scales_at : callable
        Scale and zero point, (channels, 1), of a column whose turn it is.
    blocks : iterable
        Where blocks of columns begin and end.

    Returns
    -------
    torch.Tensor
        (channels, n) integers.
    """
    values = torch.empty(
        work.shape, dtype=integer_dtype(scheme), device=work.device
    )
    for start, stop in blocks:
        errors = torch.empty_like(work[:, start:stop])
        for column in range(start, stop):
            scale, zero_point = scales_at(column)
            weight = work[:, column : column + 1]
            q = quantize_with(weight, scale, zero_point, scheme)
            values[:, column : column + 1] = q
            real = dequantize(Quantized(q, scale, zero_point), scheme)
            # The update of GPTQ's equation 2: what is left changes by the error
            # times a row of the inverse Hessian. Rows of its Cholesky factor
            # are those of the inverse without the inputs rounded before, so
            # that it is never inverted again.
            error = (weight - real) / factor[column, column]
            errors[:, column - start : column - start + 1] = error
            later = slice(column + 1, stop)
            work[:, later] -= error * factor[column, later]
        # Beyond the block all of its errors at once: one matrix product reads
        # the weights once, not once a column.
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return values
