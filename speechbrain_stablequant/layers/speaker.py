"""The speaker classifier of the ECAPA-TDNN recipe, which holds a raw weight."""

from speechbrain.lobes.models.ECAPA_TDNN import Classifier

from speechbrain_stablequant.layers.base import (
    DequantizedParameter,
    QuantizedModule,
    register,
)

__all__ = ["QuantizedClassifier"]


@register(Classifier)
class QuantizedClassifier(QuantizedModule, Classifier):
    """``ECAPA_TDNN.Classifier``: cosine to one integer vector a speaker.

    Layers of its ``blocks`` are layers of their own and quantized as such.
    """

    weight = DequantizedParameter("weight")
    input_names = ("x",)

    def forward(self, x):
        """Return the cosines to all speakers; see the float class."""
        return super().forward(self.quantize_input("x", x))
