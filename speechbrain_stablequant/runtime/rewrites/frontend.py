"""Convolutional feature encoders of the wav2vec 2.0 family, frames first.

On (batch, time, channels) each convolution is a matrix product over windows,
and layer norms normalize the last axis: nothing has to be transposed in
between.
"""

import math
import re
from functools import partial

import torch

from speechbrain_stablequant.runtime.rewrites.layout import (
    FramesFirstConv,
    is_matrix_product,
    matrix_of,
    quantize_if_planned,
    windows,
)

__all__ = ["rewrite_feature_encoder"]

_ENCODER = re.compile(r"transformers\.models\..*\.\w+FeatureEncoder")
_LAYER = re.compile(
    r"transformers\.models\..*\.\w*?(GroupNorm|NoLayerNorm|LayerNorm)ConvLayer"
)


def _class_match(pattern, module):
    """Return the match of the first class, by full name, or None."""
    # By name, so that transformers need not be installed.
    names = (f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__)
    return next((m for m in map(pattern.fullmatch, names) if m), None)


def _frames_first_layer(layer, x):
    """Apply convolution, layer norm (if there is one) and activation."""
    x = layer.conv(x)
    if hasattr(layer, "layer_norm"):
        x = layer.layer_norm(x)
    return layer.activation(x)


class _GroupNormLayer:
    """First layer: convolution, then each channel normalized over time.

    Mean and variance of the output follow from the input. A channel is
    ``w @ window + b``, so that its mean is ``w @ mean(window) + b`` and its
    variance ``w @ cov(window) @ w``. Windows have ten values where the output
    has 512 channels: statistics of the windows cost next to nothing, and the
    output is normalized in the same pass that computes it.
    """

    def __init__(self, layer):
        self.layer = layer
        matrix = matrix_of(layer.conv)().detach().double()
        # Neighbouring samples are highly correlated, so that w @ cov @ w would
        # cancel in float32. Their cosine transform is hardly correlated: with
        # windows and filters in that basis, float32 is accurate enough.
        basis = _cosines(matrix.shape[1]).to(matrix.device)
        # A copy of the weight: compilers do not use an integer kernel for a
        # weight that has another user.
        self.filters = (matrix @ basis).t().float().contiguous()
        self.basis = basis.float()

    def __call__(self, x):
        """Apply the layer to (batch, time, 1)."""
        scale, shift = self._affine(x)
        return self.layer.activation(self.layer.conv(x) * scale + shift)

    def _affine(self, x):
        """Return what the normalization multiplies with and adds."""
        conv, norm = self.layer.conv, self.layer.layer_norm
        # Quantized separately from the convolution's input: were that used
        # here as float, too, it would not be passed on as integers.
        x = quantize_if_planned(conv, x)
        seen = windows(x, conv.kernel_size[0], conv.stride[0])
        spectrum = seen @ self.basis
        mean = spectrum.mean(1, keepdim=True)
        centred = spectrum - mean
        covariance = centred.transpose(1, 2) @ centred / centred.shape[1]
        variance = self.filters * (covariance @ self.filters)
        scale = norm.weight * torch.rsqrt(
            variance.sum(1, keepdim=True) + norm.eps
        )
        mean = mean @ self.filters
        if conv.bias is not None:
            mean = mean + conv.bias
        return scale, norm.bias - mean * scale


def _cosines(n):
    """Return the orthogonal discrete cosine transform, (n, n) in float64."""
    steps = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * (steps[:, None] + 0.5) * steps)
    basis[:, 0] /= math.sqrt(2)
    return basis * math.sqrt(2 / n)


def _frames_first(layer):
    """Return the forward of one layer on (batch, time, channels), or None."""
    kind = _class_match(_LAYER, layer)
    if kind is None or not is_matrix_product(layer.conv):
        return None
    if layer.conv.dilation != (1,):
        return None
    if kind[1] != "GroupNorm":
        return partial(_frames_first_layer, layer)
    norm = layer.layer_norm
    one_each = norm.num_groups == norm.num_channels
    if layer.conv.in_channels != 1 or not one_each or not norm.affine:
        return None
    return _GroupNormLayer(layer)


def rewrite_feature_encoder(module):
    """Return new ``forward`` functions for a feature encoder and its layers."""
    if _class_match(_ENCODER, module) is None:
        return []
    layers = list(module.conv_layers)
    forwards = [_frames_first(layer) for layer in layers]
    if not all(forwards):
        return []

    def forward(input_values):
        x = input_values[..., None]
        for layer in layers:
            x = layer(x)
        return x.transpose(1, 2)

    convs = [layer.conv for layer in layers]
    changes = [
        (module, forward),
        *zip(layers, forwards),
        *zip(convs, map(FramesFirstConv, convs)),
    ]
    return [(target, "forward", new) for target, new in changes]
