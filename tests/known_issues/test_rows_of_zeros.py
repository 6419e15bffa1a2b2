"""Rows of zeros became rows of ones where no level is zero.

With odd levels and 1 bit the scale of a row of zeros was 1: dead channels, and
the padding row of an embedding, came back as +-1.
"""

import pytest
import torch

from speechbrain_stablequant.core.numerics import dequantize, quantize
from speechbrain_stablequant.core.scheme import QuantizationScheme


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_row_of_zeros_stays_zero(bits, symmetric):
    scheme = QuantizationScheme(bits=bits, symmetric=symmetric)
    rows = torch.zeros(2, 4)
    quantized = quantize(rows, scheme, "mse")
    assert bool((quantized.scale > 0).all())
    assert torch.equal(dequantize(quantized, scheme), rows)


@pytest.mark.parametrize("observer", ["max", "mse"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_row_of_zeros_stays_next_to_zero_without_a_level_for_it(
    bits, observer
):
    scheme = QuantizationScheme(bits=bits, levels="odd")
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    quantized = quantize(rows, scheme, observer)
    assert bool((quantized.scale > 0).all())
    assert float(dequantize(quantized, scheme)[0].abs().max()) < 1e-36


@pytest.mark.parametrize(
    "scheme",
    [
        QuantizationScheme(bits=1),
        QuantizationScheme(bits=2, levels="odd"),
        QuantizationScheme(bits=2, levels="ternary"),
    ],
)
def test_a_row_of_zeros_stays_near_zero(scheme):
    """The padding row of an embedding, for example."""
    found = quantize(torch.zeros(2, 8), scheme)
    assert dequantize(found, scheme).abs().max() < 1e-30
