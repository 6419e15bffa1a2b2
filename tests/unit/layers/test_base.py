"""The registry of quantized layers: what it tells whoever extends it."""

import pytest
from torch import nn

from speechbrain_stablequant.layers import QuantizedModule, register


class Wrong(nn.Linear, QuantizedModule):
    """The float class comes first: its ``forward`` would be called."""


class Letters(QuantizedModule, nn.Linear):
    weight_names = "weight"


class Right(QuantizedModule, nn.Linear):
    pass


@pytest.mark.parametrize(
    ("quantized", "float_class", "match"),
    [
        (nn.Linear, nn.Linear, "Linear must derive from QuantizedModule"),
        (Wrong, nn.Linear, "Wrong must derive .* after it, from the float"),
        (Letters, nn.Linear, "weight_names of Letters is 'weight': a tuple"),
        (Right, dict, "Right is registered for dict, which is not"),
    ],
)
def test_a_class_that_does_not_fit_is_refused(quantized, float_class, match):
    with pytest.raises(TypeError, match=match):
        register(float_class)(quantized)
