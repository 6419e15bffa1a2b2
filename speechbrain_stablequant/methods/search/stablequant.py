"""``method: stablequant``: layer-adaptive clipping by the recipe's metric.

The four steps of StableQuant (Hong, Han, Chung, Kang, ICASSP 2025,
https://arxiv.org/abs/2504.14915):

1. calibrate with ``max``, quantize one block at a time and flag those that
   raise the metric by more than a threshold;
2. for flagged blocks only, search the percentile at which the histograms of
   their inputs are cut;
3. choose every scale by mean squared error on the (cut) histogram (ours, with
   ``observer: entropy``: by Kullback-Leibler divergence, which does better
   with 4-bit inputs);
4. quantize all blocks.

Where the paper is silent: the metric is that of the validation set; a cut-off
is tried as it will be used, with step 3 applied; equal metrics are decided by
the squared error of the block's inputs. To save time, candidates are scored on
a subset first; only those that the subset cannot decide see the rest. Where
the lowest cut-off of the grid is the best, lower ones are tried: 4-bit inputs
need that.
"""

import math
from typing import Optional

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.methods.calibration import expected_error
from speechbrain_stablequant.methods.search.context import (
    SearchContext,
    SearchResult,
)
from speechbrain_stablequant.methods.search.runner import (
    FLOAT,
    Candidate,
    CandidateRunner,
)

__all__ = ["search_stablequant"]

_LOWER = (97.0, 95.0, 92.0, 90.0, 85.0, 80.0)  # percent, below the usual grid
_FINALISTS = 3  # cut-offs of a block that see all of the search set
_CONFIDENCE = 0.99  # needed of a subset to decide without the rest


def search_stablequant(context: SearchContext) -> SearchResult:
    """Find a plan with StableQuant.

    Arguments
    ---------
    context : SearchContext
        Model, statistics, settings and an evaluator.

    Returns
    -------
    SearchResult
        The plan, and a report with the sensitivity of each block, the cut-offs
        tried, what is clipped and what the search cost.

    Raises
    ------
    CalibrationError
        If there is no evaluator, so that nothing can be measured.
    """
    if context.evaluator is None:
        raise CalibrationError(
            "method: stablequant needs a metric. Give score=..., or use "
            "method: uniform."
        )
    search = _Search(context)
    sensitivity = search.sensitivity()
    flagged = [b for b, row in sensitivity.items() if row["flagged"]]
    percentiles = search.percentiles(flagged)
    layers = {
        name: context.layer_plan(
            name,
            context.settings.observer,
            percentiles.get(block, {}).get("chosen", 100.0),
            block,
        )
        for block, names in context.blocks.items()
        for name in names
    }
    plan = QuantizationPlan(layers, method="stablequant")
    joint = search.joint(layers)
    report = {
        "sensitivity": sensitivity,
        "flagged": flagged,
        "percentiles": percentiles,
        "joint": joint,
        "cost": search.runner.total_cost(),
    }
    return SearchResult(plan, report)


class _Search:
    """One run of the search; holds the split of the search set."""

    def __init__(self, context: SearchContext):
        self.context = context
        self.runner = CandidateRunner(context)
        self.subset = context.subset
        count = context.evaluator.num_batches
        self.rest = list(range(len(self.subset), count))

    def _layers(self, block: str, observer: str, percentile: float):
        return {
            name: self.context.layer_plan(name, observer, percentile, block)
            for name in self.context.blocks[block]
        }

    # -- step 1 ------------------------------------------------------------------

    def sensitivity(self) -> dict[str, dict]:
        """Quantize one block at a time with ``max`` and flag the bad ones."""
        threshold = self.context.settings.flag_threshold
        candidates = {
            block: Candidate(
                f"max {block}", block, self._layers(block, "max", 100.0)
            )
            for block in self.context.blocks
        }
        items = self.runner.run(
            "Sensitivity, subset", list(candidates.values()), self.subset
        )
        undecided = []
        for block, candidate in candidates.items():
            change = self.runner.change(items, candidate.name, _CONFIDENCE)
            if change.low <= threshold <= change.high:
                undecided.append(block)
        if self.rest and undecided:
            more = self.runner.run(
                "Sensitivity, rest",
                [candidates[b] for b in undecided],
                self.rest,
            )
        rows = {}
        for block, candidate in candidates.items():
            seen, scored_on = items, "subset"
            if block in undecided:
                scored_on = "all"
                if self.rest:
                    both = (FLOAT, candidate.name)
                    seen = {name: items[name] + more[name] for name in both}
            change = self.runner.change(seen, candidate.name)
            rows[block] = {
                **change.to_dict(),
                "scored_on": scored_on,
                # Written so that a metric of nan flags the block as well.
                "flagged": not change.difference <= threshold,
            }
        return rows

    # -- steps 2 and 3 -----------------------------------------------------------

    def percentiles(self, flagged: list[str]) -> dict[str, dict]:
        """Search the cut-off of each flagged block."""
        grid = sorted(set(self.context.settings.percentiles) | {100.0})
        tries = {block: self._cuts(block, grid) for block in flagged}
        if not tries:
            return {}
        items = self._score("Cut-offs, subset", tries, self.subset)
        self._extend(tries, items)
        finalists = {}
        for block, cuts in tries.items():
            order = self._ranked(cuts, items)
            order = order[:_FINALISTS] if self.rest else order
            finalists[block] = {p: cuts[p] for p in order}
        if self.rest:
            more = self._score("Cut-offs, rest", finalists, self.rest)
            items = {name: items[name] + more[name] for name in more}
        return {
            block: {
                "chosen": self._ranked(cuts, items)[0],
                "tried": sorted(tries[block]),
                "confirmed": {
                    str(p): self.runner.change(items, cut.name).to_dict()
                    for p, cut in cuts.items()
                },
            }
            for block, cuts in finalists.items()
        }

    def _extend(self, tries, items) -> None:
        """Go below the grid for blocks whose lowest cut-off is the best."""
        for percentile in _LOWER:
            at_edge = {
                block: self._cuts(block, [percentile])
                for block, cuts in tries.items()
                if percentile < min(cuts) == self._ranked(cuts, items)[0]
            }
            if at_edge:
                title = f"Cut-offs, {percentile:g} %"
                items.update(self._score(title, at_edge, self.subset))
            for block, cuts in at_edge.items():
                tries[block].update(cuts)

    def _score(self, title: str, tries: dict[str, dict], indices: list[int]):
        """Score the cut-offs of several blocks on some batches."""
        candidates = [cut for cuts in tries.values() for cut in cuts.values()]
        return self.runner.run(title, candidates, indices)

    def _cuts(self, block: str, grid: list[float]) -> dict[float, Candidate]:
        """Return a candidate for each cut-off that leads to other ranges."""
        cuts, seen = {}, set()
        for percentile in reversed(grid):
            layers = self._layers(
                block, self.context.settings.observer, percentile
            )
            ranges = tuple(
                (name, slot, plan.low, plan.high)
                for name, layer in layers.items()
                for slot, plan in layer.inputs.items()
            )
            if ranges not in seen:
                seen.add(ranges)
                name = f"cut {percentile} {block}"
                cuts[percentile] = Candidate(name, block, layers)
        return cuts

    def _ranked(self, by_percentile, items) -> list[float]:
        """Order cut-offs by metric, equal ones by squared error."""
        metric = self.context.evaluator.metric

        def badness(percentile: float):
            candidate = by_percentile[percentile]
            value = metric.value(items[candidate.name])
            value = math.inf if math.isnan(value) else value
            return value, self._squared_error(candidate.layers)

        return sorted(by_percentile, key=badness)

    def _squared_error(self, layers: dict[str, LayerPlan]) -> float:
        statistics = self.context.statistics
        return sum(
            expected_error(statistics[name][slot], plan)
            for name, layer in layers.items()
            for slot, plan in layer.inputs.items()
        )

    # -- step 4 ------------------------------------------------------------------

    def joint(self, layers: dict[str, LayerPlan]) -> Optional[dict]:
        """Score the plan as a whole on the search set."""
        candidate = Candidate.joint(layers)
        items = self.runner.run(
            "Joint plan", [candidate], self.subset + self.rest
        )
        metric = self.context.evaluator.metric
        return {
            "metric": metric.name,
            "float": metric.value(items[FLOAT]),
            "quantized": metric.value(items[candidate.name]),
            **self.runner.change(items, candidate.name).to_dict(),
        }
