"""Convolutions over time as matrix products on (batch, time, channels).

A compiler that knows neither the batch size nor the length has to copy tensors
between a convolution's layout and that of the layers around it. Written as a
matrix product over the frames that it sees (im2col), a convolution needs
nothing but to gather these, and has the fastest integer kernels.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "FramesFirstConv",
    "is_matrix_product",
    "matrix_of",
    "quantize_if_planned",
    "taken",
    "windows",
]


def taken(x, positions):
    """Gather frames of a tensor, those of a row side by side.

    Arguments
    ---------
    x : torch.Tensor
        (batch, time, channels).
    positions : torch.Tensor
        (rows, frames in a row), indices into time.

    Returns
    -------
    torch.Tensor
        (batch, rows, frames in a row * channels).
    """
    frames = torch.index_select(x, 1, positions.flatten())
    width = positions.shape[1] * x.shape[2]
    return frames.reshape(x.shape[0], -1, width)


def windows(x, kernel, stride):
    """Return what a convolution without padding sees at each position.

    Arguments
    ---------
    x : torch.Tensor
        (batch, time, channels).
    kernel, stride : int
        As those of the convolution.

    Returns
    -------
    torch.Tensor
        (batch, positions, kernel * channels).

    Example
    -------
    >>> windows(torch.arange(5).reshape(1, 5, 1), 3, 2).tolist()
    [[[0, 1, 2], [2, 3, 4]]]
    """
    batch, time, channels = x.shape
    if kernel == stride == 1:
        return x
    positions = (time - kernel) // stride + 1
    if channels == 1 and kernel % stride == 0:
        # Single values are too short to be gathered one by one. As the kernel
        # is a multiple of the stride, windows are made of whole strides.
        per_window = kernel // stride
        blocks = x[:, : (positions + per_window - 1) * stride]
        blocks = blocks.reshape(batch, -1, stride)
        return torch.cat(
            [blocks[:, i : i + positions] for i in range(per_window)], -1
        )
    first = torch.arange(positions, device=x.device)[:, None] * stride
    return taken(x, first + torch.arange(kernel, device=x.device))


def quantize_if_planned(layer, x):
    """Quantize the input of a layer, if the layer is one that does."""
    quantize = getattr(layer, "quantize_input", None)
    return x if quantize is None else quantize("input", x)


def is_matrix_product(conv):
    """Return whether a convolution is one matrix product over windows."""
    return (
        isinstance(conv, nn.Conv1d)
        and conv.padding == (0,)
        and conv.groups == 1
    )


def matrix_of(conv, columns=slice(None)):
    """Return a function that gives a convolution's weight as a matrix.

    Arguments
    ---------
    conv : torch.nn.Conv1d
        Float or quantized; in one group.
    columns : slice
        Which inputs to take; all by default.

    Returns
    -------
    callable
        Returns (outputs, kernel * inputs), to be applied to `windows`.
    """

    def layout(weight):
        return weight[:, columns].transpose(1, 2).flatten(1)

    cache = conv.__dict__.get("_weight_cache")
    constant = getattr(cache, "constants", {}).get("weight")
    if constant is None:
        return lambda: layout(conv.weight)

    matrix = constant.laid_out(layout)
    return lambda: cache.lowering.weight(matrix)


class FramesFirstConv:
    """A convolution without padding on (batch, time, channels).

    Arguments
    ---------
    conv : torch.nn.Conv1d
        See `is_matrix_product`; without dilation.
    """

    def __init__(self, conv):
        self.conv = conv
        self.matrix = matrix_of(conv)

    def __call__(self, x):
        """Apply the convolution."""
        conv = self.conv
        size = conv.kernel_size[0], conv.stride[0]
        if conv.in_channels == 1:
            # OpenVINO does not keep integers through a concatenation, which
            # is how `windows` gathers single values: quantize after it.
            x = quantize_if_planned(conv, windows(x, *size))
        else:
            x = windows(quantize_if_planned(conv, x), *size)
        return F.linear(x, self.matrix(), conv.bias)
