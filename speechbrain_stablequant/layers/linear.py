"""Quantized linear layers."""

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from speechbrain_stablequant.layers.base import (
    DequantizedParameter,
    QuantizedModule,
    register,
)

__all__ = ["QuantizedLinear"]


@register(nn.Linear, NonDynamicallyQuantizableLinear)
class QuantizedLinear(QuantizedModule, nn.Linear):
    """``torch.nn.Linear`` with integer weights and, if planned, inputs."""

    weight = DequantizedParameter("weight")

    def forward(self, input):
        """Apply the layer to (..., features); see ``torch.nn.Linear``."""
        return super().forward(self.quantize_input("input", input))
