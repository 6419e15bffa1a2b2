"""Lowering: what a tracer sees of quantized layers.

Runtimes have integer kernels, but use them only where they recognise certain
patterns of operators in a graph. Lowering keeps the integers and scales of each
layer and expresses them by such patterns: a weight is an integer constant times
its scales; an activation is fake-quantized to all 256 levels, because OpenVINO
is inexact with 255; one of fewer bits is clipped to its range before.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Callable, NamedTuple, Optional

import torch
from torch import nn

from speechbrain_stablequant.core.numerics import (
    Quantized,
    dequantize,
)
from speechbrain_stablequant.layers import (
    QuantizedClassifier,
    QuantizedEmbedding,
    QuantizedGRU,
    QuantizedLinear,
    QuantizedLSTM,
    QuantizedModule,
    QuantizedMultiheadAttention,
    QuantizedRNN,
)
from speechbrain_stablequant.runtime.attributes import replaced

__all__ = ["Constant", "Lowering", "lowered", "planned_int8"]

# Integer kernels multiply what the layer stores. The classifier normalizes its
# vectors after dequantization, an embedding multiplies nothing, and there are
# no integer kernels for recurrent layers.
_RECURRENT = (QuantizedGRU, QuantizedLSTM, QuantizedRNN)
_NEVER_INT8 = (QuantizedClassifier, QuantizedEmbedding, *_RECURRENT)
# Without VNNI, two products of a byte and a weight are added in 16 bits with
# saturation: 2 x 255 x 64 = 32640 is the most that fits (see `Processor`).
_SAFE = 64


def planned_int8(layer: QuantizedModule) -> bool:
    """Return whether weights and inputs are quantized to at most 8 bits.

    Such a layer can run on integer kernels. Binary activations are left out:
    no runtime here has kernels for them.
    """
    if isinstance(layer, _NEVER_INT8):
        return False
    weights = layer._weight_schemes.values()
    inputs = [layer._input_schemes.get(name) for name in layer.input_names]
    return not any(scheme.is_float for scheme in weights) and not any(
        scheme is None or scheme.is_float or scheme.is_binary
        for scheme in inputs
    )


class Constant(NamedTuple):
    """A weight in the shape that its layer uses.

    Arguments
    ---------
    values : torch.Tensor
        Integers, in the shape of the weight; (..., groups, size) where
        ``groups`` says so.
    scale : torch.Tensor or None
        float32, broadcasts to ``values``; None for 16 bits.
    zero_point : torch.Tensor or None
        Integers, broadcasts to ``values``.
    groups : bool
        Whether the last two axes become one after scaling.
    name : str
        Name of the weight, for runtimes whose graphs have names.
    """

    values: torch.Tensor
    scale: Optional[torch.Tensor]
    zero_point: Optional[torch.Tensor]
    groups: bool = False
    name: str = ""

    @property
    def axis(self) -> Optional[int]:
        """The axis along which scales change; None if there are several."""
        parts = [p for p in (self.scale, self.zero_point) if p is not None]
        axes = {
            axis
            for part in parts
            for axis, size in enumerate(part.shape)
            if size > 1
        }
        return max(axes, default=0) if len(axes) < 2 else None

    def real(self) -> torch.Tensor:
        """Return the weight as an expression that a tracer records."""
        weight = self.values.to(torch.float32)
        if self.zero_point is not None:
            weight = weight - self.zero_point.to(torch.float32)
        if self.scale is not None:
            weight = weight * self.scale
        return weight.flatten(-2) if self.groups else weight

    def laid_out(self, layout: Callable) -> "Constant":
        """Return the constant in another layout, one row for each output.

        The integers are laid out, not the real weight: compilers recognise an
        integer weight only if nothing but its scale follows the constant.

        Arguments
        ---------
        layout : callable
            Turns a tensor in the shape of the weight into a matrix.
        """

        def apply(tensor):
            if tensor is None:
                return None
            if tensor.shape[1:].numel() == 1:  # one value for each row
                return tensor.flatten(1).clone()
            return layout(tensor.expand_as(self.values)).contiguous().clone()

        values, scale, zero_point = map(apply, self[:3])
        return self._replace(values=values, scale=scale, zero_point=zero_point)

    def chunk(self, count: int) -> list["Constant"]:
        """Cut into equal parts along the first axis."""

        def part(tensor, index):
            if tensor is None or tensor.shape[0] == 1:
                return tensor
            return tensor.chunk(count)[index].contiguous()

        return [
            Constant(
                *(part(t, i) for t in self[:3]), self.groups, f"{self.name}/{i}"
            )
            for i in range(count)
        ]


class Lowering:
    """The operators of OpenVINO: plain arithmetic and fake quantization.

    Arguments
    ---------
    saturates : bool
        Whether the processor saturates sums of 8-bit products; weights of
        layers with 8-bit inputs then run at 7 bits.
    has_int8 : bool
        Whether any layer of the graph is planned for int8.
    """

    def __init__(self, saturates: bool = False, has_int8: bool = True):
        self.saturates, self.has_int8 = saturates, has_int8
        self.reduced: list[str] = []

    def constant(self, layer: QuantizedModule, name: str) -> Constant:
        """Return a weight of a layer, in the layer's own layout."""
        quantized = layer.quantized_weight(name)
        scheme = layer._weight_schemes[name]
        values, scale, zero_point = quantized

        def real(rows):
            weight = layer.from_rows(name, dequantize(rows, scheme))
            return Constant(weight.clone(), None, None)

        if scale is None or not self._keeps_integers(layer):
            return real(quantized)
        if self.saturates and planned_int8(layer):
            values, scale = self._reduce(layer, values, scale, zero_point)
        count, groups = values.shape[1], scale.shape[1]
        if groups > 1:
            size = scheme.group_size
            flat = len(layer._weight_shapes[name]) == 2
            # For group sizes that are not a power of two OpenVINO has returned
            # wrong results when the input had few rows.
            handy = count % size == 0 and size & (size - 1) == 0
            if flat and handy:
                shape = (values.shape[0], groups, size)
                zero = None if zero_point is None else zero_point[..., None]
                return Constant(
                    values.reshape(shape).clone(), scale[..., None], zero, True
                )
            # The alternative, one scale for each value, has crashed OpenVINO.
            return real(Quantized(values, scale, zero_point))

        # Scales belong to rows of the stored matrix. Spread over all values,
        # they follow these into the layout that the layer computes with; then
        # axes along which they do not change are reduced to size one, as
        # runtimes only recognise scales per tensor or per channel.
        def layout(rows):
            if rows is None:
                return None
            full = rows.expand(values.shape).contiguous()
            return _narrow(layer.from_rows(name, full)).clone()

        return Constant(
            layer.from_rows(name, values).contiguous().clone(),
            layout(scale),
            layout(zero_point),
        )

    def _keeps_integers(self, layer: QuantizedModule) -> bool:
        """Return whether the runtime can use the integers of a layer.

        Weights of recurrent layers must be float; those of weight-only
        convolutions would be scaled again at each call. An integer embedding
        cannot be compiled where other layers run in int8.
        """
        if planned_int8(layer):
            return True
        if isinstance(layer, QuantizedEmbedding):
            return not self.has_int8
        return isinstance(layer, (QuantizedLinear, QuantizedMultiheadAttention))

    def _reduce(self, layer, values, scale, zero_point):
        """Rescale integers to 7 bits, the largest to 64, against overflow."""
        if zero_point is not None or int(values.abs().max()) <= _SAFE:
            return values, scale
        self.reduced.append(type(layer).__name__)
        largest = int(values.abs().max())
        small = torch.round(values.to(torch.float32) * (_SAFE / largest))
        return small.to(values.dtype), scale * (largest / _SAFE)

    def weight(self, constant: Constant) -> torch.Tensor:
        """Return a weight as an expression that a tracer records."""
        return constant.real()

    def input(self, scheme, step: float, zero: int, x: torch.Tensor):
        """Quantize an input of a layer to a scheme of integers."""
        full = (-128, 127) if scheme.signed else (0, 255)
        # Fewer levels: clip the real value, so that the outer ones of the 256
        # levels are never used. Rounding is the same, as the step is.
        if (scheme.qmin, scheme.qmax) != full:
            x = x.clamp(
                (scheme.qmin - zero) * step, (scheme.qmax - zero) * step
            )
        return torch.fake_quantize_per_tensor_affine(x, step, zero, *full)


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """Reduce axes along which nothing changes to size one."""
    for axis in range(tensor.dim()):
        first = tensor.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(tensor), tensor):
            tensor = first
    return tensor


class _LoweredWeights(Mapping):
    """Takes the place of a layer's cache of dequantized weights in a trace.

    Layers look there first for a weight, so that their own ``forward`` needs
    no knowledge of tracing.
    """

    def __init__(self, layer: QuantizedModule, lowering: Lowering):
        self.lowering = lowering
        self.constants = {
            name: lowering.constant(layer, name)
            for name in layer._weight_schemes
        }

    def __getitem__(self, name):
        return self.lowering.weight(self.constants[name])

    def __iter__(self):
        return iter(self.constants)

    def __len__(self):
        return len(self.constants)

    def parts(self, name: str, count: int) -> list[torch.Tensor]:
        """Return equal parts of a weight, each a constant of its own."""
        chunks = self.constants[name].chunk(count)
        return [self.lowering.weight(chunk) for chunk in chunks]


def lowered(root: nn.Module, lowering: Lowering) -> AbstractContextManager:
    """Lower the quantized layers of a module inside a ``with`` block.

    Arguments
    ---------
    root : torch.nn.Module
        Module with quantized layers; unchanged after the block.
    lowering : Lowering
        How weights and inputs are expressed.
    """
    return replaced(
        change
        for layer in root.modules()
        if isinstance(layer, QuantizedModule)
        for change in (
            (layer, "_weight_cache", _LoweredWeights(layer, lowering)),
            (layer, "quantize_input", _bound(lowering, layer)),
        )
    )


def _bound(lowering: Lowering, layer: QuantizedModule):
    """Return a ``quantize_input`` with scales as Python numbers.

    They are read before the trace, because runtimes only recognise a
    quantization whose scale is a constant.
    """
    numbers = {
        name: (
            float(layer._buffers[f"{name}_scale"]),
            int(layer._buffers[f"{name}_zero_point"]),
        )
        for name in layer._input_schemes
    }

    def quantize_input(name, x):
        scheme = layer._input_schemes.get(name)
        if scheme is None or scheme.is_float or scheme.is_binary:
            return type(layer).quantize_input(layer, name, x)
        return lowering.input(scheme, *numbers[name], x)

    return quantize_input
