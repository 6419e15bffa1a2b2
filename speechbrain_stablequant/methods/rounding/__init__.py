"""Rounding: how weights become integers once their schemes are fixed.

A rounding is one file and one line in `ROUNDINGS`. To the nearest is what
`numerics.quantize` does; it needs no data and is not in the registry.
"""

from speechbrain_stablequant.methods.registry import ROUNDINGS
from speechbrain_stablequant.methods.rounding.gptq import gptq
from speechbrain_stablequant.methods.rounding.hessian import (
    HessianCollector,
    why_no_hessian,
)
from speechbrain_stablequant.methods.rounding.sequential import (
    UNREACHED,
    Rounded,
    round_weights,
)

__all__ = [
    "ROUNDINGS",
    "UNREACHED",
    "HessianCollector",
    "Rounded",
    "gptq",
    "round_weights",
    "why_no_hessian",
]
