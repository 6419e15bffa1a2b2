"""Quantized layers: one class for each kind, found through a registry."""

from speechbrain_stablequant.layers.attention import (
    QuantizedMultiheadAttention,
    QuantizedRelPosMHAXL,
    QuantizedRoPEMHA,
)
from speechbrain_stablequant.layers.base import (
    QuantizedModule,
    cached_weights,
    quantized_class,
    register,
)
from speechbrain_stablequant.layers.conv import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
)
from speechbrain_stablequant.layers.conversion import (
    Conversion,
    LayerWeights,
    kind_of,
    quantizable_layers,
    unsupported_reason,
)
from speechbrain_stablequant.layers.embedding import QuantizedEmbedding
from speechbrain_stablequant.layers.linear import QuantizedLinear
from speechbrain_stablequant.layers.recurrent import (
    QuantizedGRU,
    QuantizedLSTM,
    QuantizedRNN,
)
from speechbrain_stablequant.layers.speaker import QuantizedClassifier

__all__ = [
    "Conversion",
    "LayerWeights",
    "QuantizedClassifier",
    "QuantizedConv1d",
    "QuantizedConv2d",
    "QuantizedConvTranspose1d",
    "QuantizedEmbedding",
    "QuantizedGRU",
    "QuantizedLSTM",
    "QuantizedLinear",
    "QuantizedModule",
    "QuantizedMultiheadAttention",
    "QuantizedRNN",
    "QuantizedRelPosMHAXL",
    "QuantizedRoPEMHA",
    "cached_weights",
    "kind_of",
    "quantizable_layers",
    "quantized_class",
    "register",
    "unsupported_reason",
]
