"""Bit widths as users write them."""

import re
from collections.abc import Mapping
from typing import Any, Union

from speechbrain_stablequant.core.options import check_names
from speechbrain_stablequant.errors import KnobError

__all__ = ["parse_bits"]

_BITS = re.compile(r"^[wW](\d+)(?:[aA](\d+))?$")


def parse_bits(bits: Union[str, int, Mapping[str, int]]) -> tuple[int, int]:
    """Read a bit width for weights and one for activations.

    Arguments
    ---------
    bits : str, int or dict
        ``"W4A8"``, ``8`` (both), ``"W4"`` (weights only) or
        ``{"weights": 4, "activations": 8}``.

    Returns
    -------
    weights : int
        1 to 8, 16 or 32 (float).
    activations : int
        Likewise.

    Raises
    ------
    KnobError
        If the value is none of these.

    Example
    -------
    >>> parse_bits("W4A8"), parse_bits(8), parse_bits("W4")
    ((4, 8), (8, 8), (4, 32))
    """
    known = (*range(1, 9), 16, 32)
    widths: tuple[Any, Any]
    if isinstance(bits, Mapping):
        check_names("bits", bits, ("weights", "activations"), what="entry")
        widths = (bits.get("weights", 32), bits.get("activations", 32))
    elif isinstance(bits, str) and (match := _BITS.match(bits.strip())):
        weights, activations = match.groups()
        widths = (int(weights), int(activations or 32))
    elif isinstance(bits, str) and bits.isdecimal():
        widths = (int(bits), int(bits))
    else:
        widths = (bits, bits)
    if any(type(w) is not int or w not in known for w in widths):
        raise KnobError(
            f"bits is {bits!r}: write W8A8 or W4A8 (weights, activations), W4 "
            "(weights only) or one number. Bit widths are 1 to 8, 16 or 32."
        )
    return int(widths[0]), int(widths[1])
