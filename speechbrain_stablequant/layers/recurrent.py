"""Quantized recurrent layers: weight-only.

The hidden state is fed back at each step, so an activation scale would need
one quantizer for each gate and step; papers and runtimes keep it in float.
"""

from torch import nn

from speechbrain_stablequant.layers.base import QuantizedModule, register

__all__ = ["QuantizedLSTM", "QuantizedGRU", "QuantizedRNN"]


class _QuantizedRecurrent(QuantizedModule):
    input_names = ()

    @classmethod
    def quantizable_weights(cls, module):
        """Return the matrices of all layers and directions, not the biases."""
        names = module._flat_weights_names
        return {
            n: module._parameters[n] for n in names if n.startswith("weight_")
        }

    @property
    def _flat_weights(self):
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value):
        """Ignore the list that ``_apply`` rebuilds after a device change."""

    def flatten_parameters(self):
        """Do nothing: dequantized weights share no memory to flatten."""


@register(nn.LSTM)
class QuantizedLSTM(_QuantizedRecurrent, nn.LSTM):
    """``torch.nn.LSTM`` with integer weights."""


@register(nn.GRU)
class QuantizedGRU(_QuantizedRecurrent, nn.GRU):
    """``torch.nn.GRU`` with integer weights."""


@register(nn.RNN)
class QuantizedRNN(_QuantizedRecurrent, nn.RNN):
    """``torch.nn.RNN`` with integer weights."""
