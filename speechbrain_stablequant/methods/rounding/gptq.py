"""GPTQ: rounding that makes up for its own errors.

Rounding to the nearest minimizes the error of each weight. What matters is the
error of the layer's output on real inputs: GPTQ rounds input by input and
moves what one rounding gets wrong onto the weights not yet rounded.
"""

from collections.abc import Sequence
from typing import Callable, Optional

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
    plain = quantize(rows, scheme, observer, percentile)
    count, shared = len(hessians), scheme.granularity == "per_tensor"
    values = []
    for index, part in enumerate(rows.chunk(count)):
        scales = tuple(
            x if x is None or shared else x.chunk(count)[index]
            for x in (plain.scale, plain.zero_point)
        )
        values.append(
            _round_part(
                part, hessians[index], scales, scheme, damping, block_size
            )
        )
    return plain._replace(values=torch.cat(values))


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
    scheme: QuantizationScheme,
    damping: float,
    block_size: int,
) -> torch.Tensor:
    """Return the integers of rows that see the same inputs.

    Arguments
    ---------
    rows : torch.Tensor
        (channels, n) float32.
    hessian : torch.Tensor
        (n, n).
    scales : tuple
        Scales and zero points, (channels, groups) or (1, 1).
    scheme : QuantizationScheme
        What to round to.
    damping, block_size : float, int
        See `gptq`.

    Returns
    -------
    torch.Tensor
        (channels, n), in the order of ``rows``.
    """
    n = rows.shape[1]
    # Inputs of large energy first, while there are many weights left that can
    # make up for their errors.
    order = hessian.diagonal().argsort(descending=True, stable=True)
    groups = (order // min(scheme.group_size or n, n)).tolist()
    factor = inverse_factor(hessian[order][:, order], damping)

    def scales_at(column: int) -> Scales:
        group = groups[column]
        return tuple(x if x is None else x[:, group, None] for x in scales)

    # Indexing copies: the sweep changes what it is given.
    rounded = _sweep(rows[:, order], factor, scheme, scales_at, block_size)
    values = torch.empty_like(rounded)
    values[:, order] = rounded
    return values


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


def _sweep(
    work: torch.Tensor,
    factor: torch.Tensor,
    scheme: QuantizationScheme,
    scales_at: Callable[[int], Scales],
    block_size: int,
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
    block_size : int
        See `gptq`.

    Returns
    -------
    torch.Tensor
        (channels, n) integers.
    """
    values = torch.empty(
        work.shape, dtype=integer_dtype(scheme), device=work.device
    )
    n = work.shape[1]
    for start in range(0, n, block_size):
        stop = min(start + block_size, n)
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
