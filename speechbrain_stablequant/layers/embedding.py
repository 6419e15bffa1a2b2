"""Quantized embeddings: weight-only, one scale for each entry."""

from torch import nn

from speechbrain_stablequant.layers.base import (
    DequantizedParameter,
    QuantizedModule,
    register,
)

__all__ = ["QuantizedEmbedding"]


@register(nn.Embedding)
class QuantizedEmbedding(QuantizedModule, nn.Embedding):
    """``torch.nn.Embedding`` with an integer table."""

    weight = DequantizedParameter("weight")
    input_names = ()

    @classmethod
    def unsupported(cls, module):
        """Return why this layer cannot be quantized, or None."""
        if module.max_norm is not None:
            return "max_norm rewrites the table at each use"
        return None
