"""Search: from calibration statistics to a plan.

A method is one file and one line in `METHODS`.
"""

from speechbrain_stablequant.methods.registry import METHODS
from speechbrain_stablequant.methods.search.blocks import group_blocks
from speechbrain_stablequant.methods.search.context import (
    SearchContext,
    SearchResult,
)
from speechbrain_stablequant.methods.search.journal import (
    Journal,
    fingerprint,
    weights_digest,
)

__all__ = [
    "METHODS",
    "Journal",
    "SearchContext",
    "SearchResult",
    "fingerprint",
    "group_blocks",
    "weights_digest",
]
