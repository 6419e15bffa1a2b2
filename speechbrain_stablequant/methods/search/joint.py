"""Plans as a whole, measured with the real metric."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from speechbrain_stablequant.core.pareto import is_dominated
from speechbrain_stablequant.core.plan import LayerPlan
from speechbrain_stablequant.methods.search.allocation import Allocator
from speechbrain_stablequant.methods.search.runner import (
    FLOAT,
    Candidate,
    CandidateRunner,
)
from speechbrain_stablequant.methods.search.sensitivity import (
    LayerOption,
    ModelSizes,
    change_row,
)
from speechbrain_stablequant.metrics.metric import Interval

__all__ = ["Joint", "JointPlans"]

_SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Joint:
    """A plan that was measured with all its layers quantized.

    Arguments
    ---------
    choice : dict
        Bits by layer.
    num_bytes : int
        Size of the model in a checkpoint.
    value : float, optional
        The metric, if there is one.
    change : Interval, optional
        Of the metric, from the float model.
    distance : float
        Squared distance of the output over its squared length.
    """

    choice: Mapping[str, str]
    num_bytes: int
    value: Optional[float]
    change: Optional[Interval]
    distance: float

    @property
    def drop(self) -> float:
        """How much worse the metric is; infinite where it is not a number."""
        if self.change is None:
            return 0.0
        change = self.change.difference
        return math.inf if math.isnan(change) else change

    def badness(self) -> tuple[float, float]:
        """Return what plans are ordered by: the metric, then the distance."""
        distance = math.inf if math.isnan(self.distance) else self.distance
        return self.drop, distance


class JointPlans:
    """Measures plans once each and remembers them.

    Arguments
    ---------
    runner : CandidateRunner
        Runs them on all of the search set.
    options : dict
        The options of each layer.
    sizes : ModelSizes
        Sizes of layers.
    """

    def __init__(
        self,
        runner: CandidateRunner,
        options: Mapping[str, list[LayerOption]],
        sizes: ModelSizes,
    ):
        self.runner, self.sizes = runner, sizes
        self.options = {
            name: {o.bits: o for o in choices}
            for name, choices in options.items()
        }
        self.rest_num_bytes = sizes.float_num_bytes - sum(
            sizes.of_layer(name, None) for name in options
        )
        self.indices = list(range(runner.context.evaluator.num_batches))
        self._measured: dict[tuple, Joint] = {}
        self._float_items: list = []

    @property
    def measured(self) -> list[Joint]:
        """All plans so far."""
        return list(self._measured.values())

    def layers(self, choice: Mapping[str, str]) -> dict[str, LayerPlan]:
        """Return the plan of each layer that is quantized."""
        plans = {n: self.options[n][b].plan for n, b in choice.items()}
        return {name: plan for name, plan in plans.items() if plan is not None}

    def num_bytes(self, choice: Mapping[str, str]) -> int:
        """Return the size of the model, in bytes."""
        return self.rest_num_bytes + sum(
            self.options[n][b].num_bytes for n, b in choice.items()
        )

    def measure(self, title: str, choices: list) -> list[Joint]:
        """Measure plans that were not measured before; return all."""
        keys = [tuple(sorted(choice.items())) for choice in choices]
        new = {k: c for k, c in zip(keys, choices) if k not in self._measured}
        candidates = {
            key: Candidate.joint(self.layers(choice))
            for key, choice in new.items()
        }
        if candidates:
            unique = {c.name: c for c in candidates.values()}
            items = self.runner.run(title, list(unique.values()), self.indices)
            self._float_items = items[FLOAT]
            for key, candidate in candidates.items():
                self._measured[key] = self._joint(new[key], candidate, items)
        return [self._measured[key] for key in keys]

    def _joint(self, choice, candidate, items) -> Joint:
        metric, name = self.runner.context.evaluator.metric, candidate.name
        return Joint(
            choice=dict(choice),
            num_bytes=self.num_bytes(choice),
            value=None if metric is None else metric.value(items[name]),
            change=self.runner.change(items, name, samples=_SAMPLES),
            distance=self.runner.distance(name, self.indices),
        )

    def float_value(self) -> Optional[float]:
        """Return the metric of the float model, if there is one."""
        metric = self.runner.context.evaluator.metric
        return None if metric is None else metric.value(self._float_items)

    # -- plain data -----------------------------------------------------------

    def front(self, chosen: Joint, allocator: Allocator) -> list[dict]:
        """Return all measured plans, from small to large."""
        ordered = sorted(
            self.measured, key=lambda p: (p.num_bytes, *p.badness())
        )
        return [self.row(plan, allocator, chosen) for plan in ordered]

    def row(self, plan: Joint, allocator: Allocator, chosen: Joint) -> dict:
        """Return a plan as plain data."""
        return {
            "name": f"{plan.num_bytes / self.sizes.float_num_bytes:.4f}",
            "num_bytes": plan.num_bytes,
            "ratio": plan.num_bytes / self.sizes.float_num_bytes,
            "distance": plan.distance,
            "predicted_distance": sum(
                self.options[n][b].distance for n, b in plan.choice.items()
            ),
            "value": plan.value,
            **change_row(plan.change),
            "bits": dict(sorted(Counter(plan.choice.values()).items())),
            "measured": True,
            "efficient": not is_dominated(
                (plan.num_bytes, plan.badness()),
                ((p.num_bytes, p.badness()) for p in self.measured),
            ),
            "chosen": plan is chosen,
        }
