"""Quantized convolutions as matrix products of integers (im2col).

ONNX Runtime has fast integer kernels for matrix products, but none for
convolutions with real results. Gathering the values that a kernel sees at each
position costs less than the difference: integers are gathered, a quarter of the
bytes of floats, and long kernels are gathered in two stages (`_stages`).
"""

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.runtime.lowering import planned_int8

__all__ = ["MAX_GROUPS", "integer_forward"]

MAX_GROUPS = 32  # each group is a product of its own


def integer_forward(layer: nn.Module) -> Optional[Callable]:
    """Return a ``forward`` for a quantized convolution, or None.

    Arguments
    ---------
    layer : torch.nn.Module
        Any layer, lowered. Only convolutions whose inputs are quantized, not
        transposed and not in many groups, have one.
    """
    if (
        not isinstance(layer, QuantizedModule)
        or not isinstance(layer, (nn.Conv1d, nn.Conv2d))
        or not planned_int8(layer)
        or layer.groups > MAX_GROUPS
    ):
        return None
    constant = layer._weight_cache.constants["weight"]
    if constant.axis is None:
        return None
    return _MatrixConvolution(layer, constant)


class _MatrixConvolution:
    """A convolution as gathered windows times a matrix, channels last.

    Arguments
    ---------
    conv : torch.nn.Conv1d or torch.nn.Conv2d
        Quantized and lowered.
    constant : Constant
        Its weight.
    """

    def __init__(self, conv, constant):
        self.conv = conv
        parts = constant.chunk(conv.groups) if conv.groups > 1 else [constant]
        self.matrices = [_as_matrix(part) for part in parts]

    def __call__(self, x):
        """Apply the convolution to (batch, channels, ...)."""
        conv = self.conv
        dims = len(conv.kernel_size)
        batched = x.dim() == dims + 2
        if not batched:
            x = x.unsqueeze(0)
        x = conv.quantize_input("input", self._padded(x))
        x = x.permute(0, *range(2, dims + 2), 1)
        positions = self._positions(x)
        weight, size = conv._weight_cache.lowering.weight, conv.in_channels
        step = size // len(self.matrices)
        results = [
            F.linear(
                _windows(x[..., first : first + step], step, positions),
                weight(matrix),
            )
            for first, matrix in zip(range(0, size, step), self.matrices)
        ]
        out = results[0] if len(results) == 1 else torch.cat(results, -1)
        if conv.bias is not None:
            out = out + conv.bias
        out = out.permute(0, dims + 1, *range(1, dims + 1))
        return out if batched else out.squeeze(0)

    def _padded(self, x):
        """Pad the input; zero is an exact level, so quantizing may follow."""
        conv = self.conv
        # As the convolution itself keeps it: the last axis first.
        padding = conv._reversed_padding_repeated_twice
        if not any(padding):
            return x
        if conv.padding_mode == "zeros":
            return F.pad(x, padding)
        return F.pad(x, padding, mode=conv.padding_mode)

    def _positions(self, x):
        """Return, for each axis and stage, the indices of what is gathered.

        They are computed from the shape in the trace: lengths stay dynamic.
        """
        conv, found = self.conv, []
        for axis, (kernel, stride, dilation) in enumerate(
            zip(conv.kernel_size, conv.stride, conv.dilation), start=1
        ):
            length = x.shape[axis]
            for size, apart in _stages(kernel, stride, dilation):
                length = (length - apart * (size - 1) - 1) // stride + 1
                first = torch.arange(length, device=x.device) * stride
                taps = torch.arange(size, device=x.device) * apart
                found.append((axis, size, (first[:, None] + taps).flatten()))
        return found


def _as_matrix(constant):
    """Lay a weight out as (outputs, kernel * inputs)."""

    def layout(tensor):
        # `_windows` puts each axis that it gathers in front of those before,
        # so that the last axis of the kernel comes first.
        axes = range(tensor.dim() - 1, 1, -1)
        return tensor.permute(0, *axes, 1).flatten(1)

    return constant.laid_out(layout)


def _stages(kernel, stride, dilation):
    """Factor a kernel into stages of (number of values, distance).

    A window of 128 values gathered at once takes 128 short copies for each
    position. Gathered as 8 neighbours, and of these blocks 16 that are 8 apart,
    it takes 24 copies, most of them longer. Possible where stride is 1: then
    the blocks of all positions are the windows of a shorter kernel.

    Example
    -------
    >>> _stages(3, 2, 1), _stages(128, 1, 1)
    ([(3, 1)], [(8, 1), (16, 8)])
    """
    if kernel == stride == 1:
        return []
    root = int(kernel**0.5) if stride == 1 and kernel >= 16 else 1
    short = next(n for n in range(root, 0, -1) if kernel % n == 0)
    if short == 1:
        return [(kernel, dilation)]
    return [(short, dilation), (kernel // short, dilation * short)]


def _windows(x, width, positions):
    """Gather the values that a kernel sees at each of its positions.

    Arguments
    ---------
    x : torch.Tensor
        (batch, positions ..., values).
    width : int
        Number of values; a tracer does not know that it never changes.
    positions : list of (int, int, torch.Tensor)
        For each step an axis, how many values in a row, and their indices.

    Returns
    -------
    torch.Tensor
        As ``x``, with a row in place of each value.

    Example
    -------
    >>> x = torch.arange(5).reshape(1, 5, 1)
    >>> _windows(x, 1, [(1, 3, torch.tensor([0, 1, 2, 2, 3, 4]))]).tolist()
    [[[0, 1, 2], [2, 3, 4]]]
    """
    for axis, number, rows in positions:
        taken = torch.index_select(x, axis, rows)
        before, after = x.shape[:axis], x.shape[axis + 1 : -1]
        x = taken.reshape(*before, -1, number, *after, width)
        last = x.dim() - 1
        rest = [n for n in range(last) if n != axis + 1]
        width *= number
        x = x.permute(*rest, axis + 1, last)
        x = x.reshape(*before, -1, *after, width)
    return x
