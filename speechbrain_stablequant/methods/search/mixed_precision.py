"""``method: mixed_precision``: bit widths layer by layer, under a budget.

1. Each layer is quantized alone to each candidate bit width (`sensitivity`).
2. Distances of the output add up well enough to rank plans: for a row of
   sizes, dynamic programming finds the plan of least total distance
   (`allocation`).
3. These plans are measured with the real metric, all layers at once, which
   includes how layers interact. They are the Pareto front.
4. With ``max_drop`` the gap between the smallest plan within the budget and
   the next smaller one is halved a few times, then the latter is repaired:
   its most costly layers are given the next bit width one at a time, and
   those that gain most are combined. With ``target_size`` plans of that size that
   differ in how distances are weighed are measured, and repaired likewise.

The ECAPA-TDNN framework (https://arxiv.org/abs/2407.08991) is this with
``candidates: [W8A8, W32]`` and ``ranking: metric``.
"""

import dataclasses
import math
import time
from typing import Callable, Optional

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import CalibrationError, KnobError
from speechbrain_stablequant.methods.search.allocation import Allocator, Option
from speechbrain_stablequant.methods.search.context import (
    SearchContext,
    SearchResult,
)
from speechbrain_stablequant.methods.search.joint import Joint, JointPlans
from speechbrain_stablequant.methods.search.runner import CandidateRunner
from speechbrain_stablequant.methods.search.sensitivity import (
    LayerOption,
    ModelSizes,
    measure_layers,
    outermost_layers,
    sensitivity_rows,
)
from speechbrain_stablequant.metrics.metric import Metric

__all__ = ["search_mixed_precision"]

logger = get_logger(__name__)

_ROUNDS = 2  # of closing in on the budget between two sizes
_BETWEEN = 2  # sizes measured in each
_SUSPECTS = 4  # layers that repair looks at
_TIE = 0.01  # weight of the distance where the metric decides

Choice = dict[str, str]


def search_mixed_precision(context: SearchContext) -> SearchResult:
    """Find the bit widths of all layers under a budget.

    Arguments
    ---------
    context : SearchContext
        Model, statistics, settings and an evaluator.

    Returns
    -------
    SearchResult
        The plan, and a report with the sensitivity of each layer, the Pareto
        front and what the search cost.

    Raises
    ------
    CalibrationError
        If nothing can be measured.
    KnobError
        If ``target_size`` is smaller than the candidates allow, or an option
        asks for a metric where there is none.
    """
    _check(context)
    start = time.perf_counter()
    search = _Search(context)
    if context.settings.max_drop is not None:
        chosen = search.within_drop(context.settings.max_drop)
    else:
        chosen = search.within_size(context.settings.target_size)
    plan = QuantizationPlan(
        search.plans.layers(chosen.choice), method="mixed_precision"
    )
    report = search.report(chosen)
    report["cost"]["seconds"] = time.perf_counter() - start
    return SearchResult(plan, report)


def _check(context: SearchContext) -> None:
    """Refuse what cannot be measured."""
    settings, evaluator = context.settings, context.evaluator
    if evaluator is None:
        raise CalibrationError(
            "method: mixed_precision needs data to compare outputs on. Give "
            "batches (with a score, if there is one), or use method: uniform."
        )
    if evaluator.metric is None:
        for option, asked in (
            ("max_drop", settings.max_drop is not None),
            ("ranking: metric", settings.ranking == "metric"),
        ):
            if asked:
                raise KnobError(
                    f"{option} needs a metric, and there is none here: use "
                    "target_size with ranking: distance."
                )


class _Search:
    """One run of the search: options, allocations and measured plans."""

    def __init__(self, context: SearchContext):
        self.context = context
        self.sizes = ModelSizes(context.conversion)
        self.runner = CandidateRunner(_by_layer(context), distances=True)
        self.options = measure_layers(
            self.runner.context, self.runner, self.sizes, context.subset
        )
        self.plans = JointPlans(self.runner, self.options, self.sizes)
        self.allocator = self._allocator(self._cost(context.settings.ranking))
        self._measure_front()

    # -- costs and sizes -----------------------------------------------------

    def _cost(self, ranking: str) -> Callable[[LayerOption], float]:
        """Return what the allocation adds up."""
        unknown = any(
            math.isnan(o.distance) for c in self.options.values() for o in c
        )
        if ranking == "distance" and not unknown:
            return lambda option: option.distance

        def cost(option: LayerOption) -> float:
            change = 0.0 if option.change is None else option.change.difference
            change = math.inf if math.isnan(change) else max(change, 0.0)
            distance = 0.0 if unknown else option.distance
            return change + _TIE * distance

        return cost

    def _allocator(self, cost) -> Allocator:
        return Allocator(
            {
                name: [Option(o.bits, o.num_bytes, cost(o)) for o in choices]
                for name, choices in self.options.items()
            }
        )

    @property
    def _metric(self) -> Optional[Metric]:
        """The metric; known after the first batch, if at all."""
        return self.context.evaluator.metric

    @property
    def _rest(self) -> int:
        """Bytes of what has no choice: biases, norms, buffers."""
        return self.plans.rest_num_bytes

    def _measure_front(self) -> None:
        """Measure the best plans of a row of sizes."""
        count = self.context.settings.front_points
        low, high = self.allocator.smallest, self.allocator.largest
        # The last one may be rounded below what the largest plan takes.
        sizes = np.geomspace(max(low, 1), max(high, 1), count)
        self._measure_sizes("Pareto front", [*sizes[1:-1], low, high])

    def _measure_sizes(self, title: str, sizes) -> list[Joint]:
        """Measure the plan of least cost for each size."""
        choices = [
            self.allocator.allocate(max(int(size), self.allocator.smallest))
            for size in sizes
        ]
        return self.plans.measure(title, choices)

    # -- fewest bytes within the budget -----------------------------------------

    def within_drop(self, max_drop: float) -> Joint:
        """Return the smallest plan whose metric drops by so much at most."""

        def fits(plan: Joint) -> bool:
            return plan.drop <= max_drop  # nan does not

        for _ in range(_ROUNDS):
            best, below = self._around(fits)
            if best is None or below is None:
                break
            sizes = np.geomspace(
                below.num_bytes - self._rest,
                best.num_bytes - self._rest,
                _BETWEEN + 2,
            )
            self._measure_sizes("Closing in", sizes[1:-1])
        best, below = self._around(fits)
        if best is not None and below is not None:
            self._repair(below, limit=best.num_bytes)
            best, _ = self._around(fits)
        if best is None:
            best = min(self.plans.measured, key=Joint.badness)
            logger.warning(
                "No plan stays within max_drop %g (the best: %+.3f). Allow "
                "wider candidates, such as W16 or W32.",
                max_drop,
                best.drop,
            )
        return best

    def _around(self, fits) -> tuple[Optional[Joint], Optional[Joint]]:
        """Return the smallest plan that fits, the largest below it."""
        fitting = [p for p in self.plans.measured if fits(p)]
        if not fitting:
            return None, None
        best = min(fitting, key=lambda p: (p.num_bytes, *p.badness()))
        below = [p for p in self.plans.measured if p.num_bytes < best.num_bytes]
        return best, max(below, key=lambda p: p.num_bytes, default=None)

    # -- best metric within a size ------------------------------------------------

    def within_size(self, target_size: float) -> Joint:
        """Return the plan of the best metric within a part of the bytes."""
        limit = int(target_size * self.sizes.float_num_bytes)
        budget = limit - self._rest
        if budget < self.allocator.smallest:
            smallest = self.allocator.smallest + self._rest
            raise KnobError(
                f"target_size {target_size:g} cannot be reached: with these "
                "candidates the smallest plan has "
                f"{smallest / self.sizes.float_num_bytes:.3f} of the bytes."
            )
        allocators = [self.allocator]
        if self._metric is not None:
            costs = [
                self._cost("distance"),
                lambda option: math.sqrt(self._cost("distance")(option)),
                self._cost("metric"),
            ]
            allocators += map(self._allocator, costs)
        choices = [a.allocate(budget) for a in allocators]
        first = self.plans.measure("Target size", choices)
        if self._metric is not None:
            self._repair(min(first, key=Joint.badness), limit, fill=True)
        inside = [p for p in self.plans.measured if p.num_bytes <= limit]
        return min(inside, key=Joint.badness)

    # -- repair ----------------------------------------------------------------------

    def _repair(self, plan: Joint, limit: int, fill: bool = False) -> None:
        """Give the most costly layers more, one by one, then together.

        Arguments
        ---------
        plan : Joint
            Where to start.
        limit : int
            Bytes that the result may have.
        fill : bool
            Whether cheap layers are to make room for what is given.
        """
        suspects = sorted(
            plan.choice,
            key=lambda n: -self.allocator.option(n, plan.choice[n]).cost,
        )
        singles = {}
        for name in suspects:
            choice = self._fitted(plan.choice, [name], limit, fill)
            if choice is not None:
                singles[name] = choice
            if len(singles) == _SUSPECTS:
                break
        measured = self.plans.measure("Repair", list(singles.values()))
        gains = {
            name: (plan.drop - found.drop)
            / max(1, abs(found.num_bytes - plan.num_bytes))
            for name, found in zip(singles, measured)
            if found.drop < plan.drop
        }
        order = sorted(gains, key=lambda n: -gains[n])
        together = [
            self._fitted(plan.choice, order[:count], limit, fill)
            for count in range(2, len(order) + 1)
        ]
        self.plans.measure("Repair", [c for c in together if c is not None])

    def _fitted(self, choice: Choice, names, limit, fill) -> Optional[Choice]:
        """Return a choice with some layers one option up, or None."""
        changed = dict(choice)
        for name in names:
            better = self._next(name, choice[name], up=True)
            if better is None:
                return None
            changed[name] = better
        budget = limit - self._rest
        while fill and self.allocator.num_bytes(changed) > budget:
            cheapest = self._cheapest_step(changed, exclude=names)
            if cheapest is None:
                return None
            changed.update(cheapest)
        return changed if self.allocator.num_bytes(changed) <= budget else None

    def _cheapest_step(self, choice: Choice, exclude) -> Optional[Choice]:
        """Return the step down that costs least for a byte."""
        steps = {}
        for name in choice:
            lower = self._next(name, choice[name], up=False)
            if lower is not None and name not in exclude:
                now = self.allocator.option(name, choice[name])
                then = self.allocator.option(name, lower)
                saved = now.num_bytes - then.num_bytes
                steps[name, lower] = (then.cost - now.cost) / saved
        if not steps:
            return None
        name, lower = min(steps, key=lambda s: (steps[s], s))
        return {name: lower}

    def _next(self, name: str, bits: str, up: bool) -> Optional[str]:
        """Return the next larger (or smaller) option of a layer."""
        now = self.allocator.option(name, bits)
        options = [
            o
            for o in self.allocator.options[name]
            if (o.num_bytes > now.num_bytes) is up
            and o.num_bytes != now.num_bytes
        ]
        if not options:
            return None
        pick = min if up else max
        return pick(options, key=lambda o: o.num_bytes).bits

    # -- the report ---------------------------------------------------------------

    def report(self, chosen: Joint) -> dict:
        """Return plain data about the search."""
        context, settings = self.context, self.context.settings
        metric = self._metric
        budget = {"target_size": settings.target_size}
        if settings.max_drop is not None:
            budget = {"max_drop": settings.max_drop}
        return {
            "method": "mixed_precision",
            "metric": None if metric is None else metric.name,
            "unit": None if metric is None else metric.unit,
            "float": self.plans.float_value(),
            "budget": budget,
            "ranking": settings.ranking,
            "candidates": [str(c) for c in settings.candidates],
            "float_num_bytes": self.sizes.float_num_bytes,
            "sensitivity": sensitivity_rows(context.conversion, self.options),
            "front": self.plans.front(chosen, self.allocator),
            "chosen": self.plans.row(chosen, self.allocator, chosen),
            "joint": self._joint(chosen),
            "cost": self.runner.total_cost(),
        }

    def _joint(self, chosen: Joint) -> Optional[dict]:
        """Return the chosen plan's score, as other methods report it."""
        if self._metric is None:
            return None
        return {
            "metric": self._metric.name,
            "float": self.plans.float_value(),
            "quantized": chosen.value,
            **chosen.change.to_dict(),
        }


def _by_layer(context: SearchContext) -> SearchContext:
    """Return the context with each layer as a block of its own."""
    blocks: dict[str, list[str]] = {}
    for name, outer in outermost_layers(context.layers).items():
        blocks.setdefault(outer, []).append(name)
    return dataclasses.replace(context, blocks=blocks)
