"""``method: uniform``: one observer for all layers, no search."""

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.methods.search.context import (
    SearchContext,
    SearchResult,
)

__all__ = ["search_uniform"]


def search_uniform(context: SearchContext) -> SearchResult:
    """Quantize every layer with the observer of the settings.

    Arguments
    ---------
    context : SearchContext
        Statistics and settings; no evaluator is needed.

    Returns
    -------
    SearchResult
        The plan.
    """
    layers = {name: context.layer_plan(name) for name in context.layers}
    return SearchResult(QuantizationPlan(layers, method="uniform"))
