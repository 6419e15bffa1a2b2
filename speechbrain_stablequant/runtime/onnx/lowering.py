"""How quantized layers present themselves to the ONNX exporter.

A weight becomes a placeholder, which `onnx.graph` replaces by the integers of
the layer after the export; an input becomes QuantizeLinear and
DequantizeLinear. Activations are always unsigned, as ONNX Runtime's kernels
multiply unsigned by signed integers: signed levels are raised by 128, and the
zero point with them, which leaves the real values as they are.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.errors import RuntimeConversionError
from speechbrain_stablequant.layers import (
    QuantizedClassifier,
    QuantizedGRU,
    QuantizedLSTM,
    QuantizedModule,
    QuantizedRNN,
)
from speechbrain_stablequant.runtime.attributes import replaced
from speechbrain_stablequant.runtime.lowering import (
    Constant,
    Lowering,
    planned_int8,
)
from speechbrain_stablequant.runtime.onnx.convolution import integer_forward

__all__ = [
    "QdqLowering",
    "integer_convolutions",
    "plain_attention",
]

_PLACEHOLDER = "stablequant::Weight"
# Layers whose weights the exporter computes with (gates reordered, vectors
# normalized): it needs real values in place of a placeholder.
_FLOAT = (QuantizedClassifier, QuantizedGRU, QuantizedLSTM, QuantizedRNN)


class QdqLowering(Lowering):
    """The operators of ONNX for quantized tensors.

    Arguments
    ---------
    root : torch.nn.Module
        What is exported; weights are named after its layers.
    saturates : bool
        See `Lowering`.
    """

    def __init__(self, root: nn.Module, saturates: bool = False):
        super().__init__(saturates)
        self.names = {id(m): name for name, m in root.named_modules()}
        self.layers: dict[str, QuantizedModule] = {}
        self.weights: dict[str, Constant] = {}
        self.expanded: set[str] = set()

    def owner(self, name: str) -> Optional[QuantizedModule]:
        """Return the layer that a name in the file belongs to."""
        return self.layers.get(name.partition("/")[0])

    def is_planned(self, name: str) -> bool:
        """Return whether a weight's layer is planned for int8."""
        return planned_int8(self.owner(name))

    def constant(self, layer: QuantizedModule, name: str) -> Constant:
        """Return a weight of a layer, named and signed."""
        constant = super().constant(layer, name)
        path = f"{self.names[id(layer)]}.{name}".lstrip(".")
        self.layers[path] = layer
        constant = constant._replace(name=path)
        if constant.values.dtype == torch.uint8 and planned_int8(layer):
            constant = _signed(constant)
        return constant

    def _keeps_integers(self, layer: QuantizedModule) -> bool:
        """Return whether the file holds the integers of a layer."""
        return not isinstance(layer, _FLOAT)

    def weight(self, constant: Constant) -> torch.Tensor:
        """Return a weight as a placeholder that the exporter records."""
        if constant.scale is None or not (
            constant.groups or constant.axis is not None
        ):
            self.expanded.add(constant.name)
            return constant.real()
        name, copies = constant.name, 1
        while self.weights.get(name, constant).values is not constant.values:
            copies += 1  # a part or another layout of the same weight
            name = f"{constant.name}/{copies}"
        self.weights[name] = constant
        return _Weight.apply(_untraced(constant), name)

    def input(self, scheme, step: float, zero: int, x: torch.Tensor):
        """Quantize an input of a layer to a scheme of integers."""
        shift = 128 if scheme.signed else 0
        levels = scheme.qmin + shift, scheme.qmax + shift
        return _Activation.apply(x, step, zero + shift, *levels)


def _signed(constant: Constant) -> Constant:
    """Return the same real weight in signed integers: all 128 lower."""

    def lower(tensor):
        return (tensor.to(torch.int16) - 128).to(torch.int8)

    zero_point = constant.zero_point
    if zero_point is None:
        zero_point = torch.zeros(
            constant.scale.shape, dtype=constant.values.dtype
        )
    return constant._replace(
        values=lower(constant.values), zero_point=lower(zero_point)
    )


def _untraced(constant: Constant) -> torch.Tensor:
    """Return a real weight with no record of how it was computed.

    The exporter fails on autograd functions whose arguments were computed
    inside the trace, hence NumPy.
    """
    real = constant.values.numpy().astype(np.float32)
    if constant.zero_point is not None:
        real = real - constant.zero_point.numpy().astype(np.float32)
    real = torch.from_numpy(real * constant.scale.numpy())
    return real.flatten(-2) if constant.groups else real


class _Weight(torch.autograd.Function):
    """A weight that the exporter writes as a placeholder with a name."""

    @staticmethod
    def forward(ctx, real, name):
        return real.clone()

    @staticmethod
    def symbolic(g, real, name):
        result = g.op(_PLACEHOLDER, name_s=name)
        result.setType(real.type())
        return result


class _Activation(torch.autograd.Function):
    """An activation that the exporter writes as a pair of Q and DQ."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        return torch.fake_quantize_per_tensor_affine(
            x, scale, zero_point, low, high
        )

    @staticmethod
    def symbolic(g, x, scale, zero_point, low, high):
        def level(value):
            tensor = torch.tensor(value, dtype=torch.uint8)
            return g.op("Constant", value_t=tensor)

        step = g.op("Constant", value_t=torch.tensor(scale))
        zero = level(zero_point)
        levels = g.op("QuantizeLinear", x, step, zero)
        if (low, high) != (0, 255):
            levels = g.op("Clip", levels, level(low), level(high))
        result = g.op("DequantizeLinear", levels, step, zero)
        result.setType(x.type())
        return result


def integer_convolutions(root: nn.Module) -> AbstractContextManager:
    """Export convolutions as matrix products, inside a ``with`` block.

    ONNX Runtime's fast integer convolution (QLinearConv) rounds its results to
    8 bits, which the layer does not; its integer matrix product does not round.

    Arguments
    ---------
    root : torch.nn.Module
        Module with quantized layers; enter inside `lowered`.
    """
    forwards = ((layer, integer_forward(layer)) for layer in root.modules())
    return replaced(
        (layer, "forward", forward) for layer, forward in forwards if forward
    )


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    """Scaled dot-product attention; rows without any key give zeros.

    The exporter's own translation looks for such rows among the (time, time)
    scores. Replacing NaN in the result touches far fewer values.
    """
    if enable_gqa:
        raise RuntimeConversionError("attention with grouped queries")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool).tril()
    if attn_mask is None:
        return scores.softmax(-1) @ value
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, -math.inf)
    result = (scores + attn_mask).softmax(-1) @ value
    return torch.where(result.isnan(), 0.0, result)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Export attention as matrix products and a softmax."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before
