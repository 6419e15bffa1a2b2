"""Search: from calibration statistics to a plan.

A method is one file and one line in `METHODS`.
"""

from typing import Callable

from speechbrain_stablequant.methods.search.blocks import group_units
from speechbrain_stablequant.methods.search.context import (
    SearchContext,
    SearchResult,
)
from speechbrain_stablequant.methods.search.journal import (
    Journal,
    fingerprint,
    weights_digest,
)
from speechbrain_stablequant.methods.search.mixed_precision import (
    search_mixed_precision,
)
from speechbrain_stablequant.methods.search.stablequant import (
    search_stablequant,
)
from speechbrain_stablequant.methods.search.uniform import search_uniform

__all__ = [
    "METHODS",
    "Journal",
    "SearchContext",
    "SearchResult",
    "fingerprint",
    "group_units",
    "weights_digest",
]

METHODS: dict[str, Callable[[SearchContext], SearchResult]] = {
    "mixed_precision": search_mixed_precision,
    "quantization_aware": search_uniform,  # where training starts from
    "stablequant": search_stablequant,
    "uniform": search_uniform,
}
