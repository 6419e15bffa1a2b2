"""Bit widths as users write them."""

import pytest

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.errors import KnobError

GOOD = {
    "W4A8": (4, 8),
    "w8a8": (8, 8),
    "W4": (4, 32),
    "8": (8, 8),
    8: (8, 8),
    16: (16, 16),
    "W1A16": (1, 16),
    "W32A32": (32, 32),
}


@pytest.mark.parametrize("text", GOOD)
def test_widths(text):
    assert parse_bits(text) == GOOD[text]


def test_widths_by_name():
    assert parse_bits({"weights": 4}) == (4, 32)
    assert parse_bits({"activations": 8, "weights": 2}) == (2, 8)


@pytest.mark.parametrize(
    "bits",
    ["", "A8", "W9", "W4A", "W4A0", "eight", 0, 9, 64, -8, 8.0, True, None]
    + [
        ["W4"],
        {"weights": "4"},
        {"weights": True},
        {"weights": 8.0},
        {"weight": 4},
    ],
    ids=str,
)
def test_widths_that_are_refused(bits):
    with pytest.raises(KnobError, match="bits"):
        parse_bits(bits)
