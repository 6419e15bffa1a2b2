"""The methods and roundings by the names that users write.

A new one is a file and a line here, or one assignment in a user's script. They
are named by their modules, not imported: `settings` checks options against
these names, and the modules import `settings`.
"""

from speechbrain_stablequant.core.registry import Registry

__all__ = ["METHODS", "ROUNDINGS"]

_METHODS = "speechbrain_stablequant.methods"

METHODS = Registry("method", ("context",))
METHODS.update(
    mixed_precision=f"{_METHODS}.search.mixed_precision:search_mixed_precision",
    # Training starts from the ranges of a uniform plan.
    quantization_aware=f"{_METHODS}.search.uniform:search_uniform",
    stablequant=f"{_METHODS}.search.stablequant:search_stablequant",
    uniform=f"{_METHODS}.search.uniform:search_uniform",
)

# To the nearest is what `numerics.quantize` does; it needs no data and is not
# registered. A name must also be one of `core.plan.ROUNDINGS`, since plans and
# checkpoints carry it.
ROUNDINGS = Registry(
    "rounding", ("rows", "hessian", "scheme", "observer", "percentile")
)
ROUNDINGS.update(gptq=f"{_METHODS}.rounding.gptq:gptq")
