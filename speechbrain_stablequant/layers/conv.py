"""Quantized convolutions.

Zero padding, reflect padding and the like happen after the input has been
quantized: all of them only repeat values or add zeros, and zero is always one
of the levels.
"""

from torch import nn

from speechbrain_stablequant.layers.base import (
    DequantizedParameter,
    QuantizedModule,
    register,
)

__all__ = ["QuantizedConv1d", "QuantizedConv2d", "QuantizedConvTranspose1d"]


class _QuantizedConv(QuantizedModule):
    def forward(self, input, *args, **kwargs):
        """Apply the layer; see the float class."""
        input = self.quantize_input("input", input)
        return super().forward(input, *args, **kwargs)


@register(nn.Conv1d)
class QuantizedConv1d(_QuantizedConv, nn.Conv1d):
    """``torch.nn.Conv1d`` with integer weights and, if planned, inputs."""

    weight = DequantizedParameter("weight")


@register(nn.Conv2d)
class QuantizedConv2d(_QuantizedConv, nn.Conv2d):
    """``torch.nn.Conv2d`` with integer weights and, if planned, inputs."""

    weight = DequantizedParameter("weight")


@register(nn.ConvTranspose1d)
class QuantizedConvTranspose1d(_QuantizedConv, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with integer weights and inputs.

    Its weight is (in, out / groups, kernel): an output channel of group g is
    made of the rows of that group's inputs.
    """

    weight = DequantizedParameter("weight")

    @staticmethod
    def to_rows(module, name, weight):
        """Turn the weight into (output channels, inputs x kernel)."""
        groups = module.groups
        inputs, outputs, kernel = weight.shape
        grouped = weight.reshape(groups, inputs // groups, outputs, kernel)
        return grouped.transpose(1, 2).reshape(groups * outputs, -1)

    def from_rows(self, name, rows):
        """Undo `to_rows`."""
        inputs, outputs, kernel = self._weight_shapes[name]
        grouped = rows.reshape(
            self.groups, outputs, inputs // self.groups, kernel
        )
        return grouped.transpose(1, 2).reshape(inputs, outputs, kernel)
