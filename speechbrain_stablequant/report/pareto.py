"""Plans as points of size and metric, and which are on the Pareto front."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from speechbrain_stablequant.core.format import is_number
from speechbrain_stablequant.core.pareto import is_dominated

__all__ = ["Front", "FrontPoint", "mark_efficient"]


@dataclass(frozen=True)
class FrontPoint:
    """A plan in the picture.

    Arguments
    ---------
    ratio : float
        Its bytes over those of the float model.
    value : float
        The metric, or the distance where there is none.
    change, low, high : float, optional
        Change of the metric from the float model, and its interval.
    label : str
        For the legend.
    group : str
        Points of a group have one colour.
    efficient : bool
        Whether the plan is on the Pareto front.
    chosen : bool
        Whether the search chose it.
    """

    ratio: float
    value: float
    change: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    label: str = ""
    group: str = ""
    efficient: bool = False
    chosen: bool = False

    @property
    def is_drawable(self) -> bool:
        """Whether both coordinates are numbers."""
        return self.ratio > 0 and is_number(self.value)


@dataclass(frozen=True)
class Front:
    """All that is in the picture.

    Arguments
    ---------
    points : sequence of FrontPoint
        Plans of a search.
    extra : sequence of FrontPoint
        Others to compare them with, each with a label; of the same data.
    metric : str, optional
        Name of the metric; None when values are distances.
    unit : str
        Unit of a change.
    float_value : float, optional
        The metric of the float model.
    budget : dict
        ``max_drop`` or ``target_size``.
    title : str
        Says what the metric was measured on.

    Example
    -------
    >>> front = Front(
    ...     [FrontPoint(0.25, 6.2, efficient=True)],
    ...     extra=[FrontPoint(0.26, 6.4, label="uniform")],
    ...     metric="WER",
    ...     float_value=6.1,
    ... )
    >>> [point.value for point in front.everything]
    [6.2, 6.4]
    """

    points: Sequence[FrontPoint]
    extra: Sequence[FrontPoint] = ()
    metric: Optional[str] = None
    unit: str = "points"
    float_value: Optional[float] = None
    budget: dict = dataclasses.field(default_factory=dict)
    title: str = ""

    @classmethod
    def from_search(
        cls, search: dict, extra: Sequence[FrontPoint] = ()
    ) -> "Front":
        """Read the report of a search."""
        metric = search["metric"]
        value = "distance" if metric is None else "value"
        names = ("ratio", "change", "low", "high", "efficient", "chosen")
        points = [
            FrontPoint(value=row[value], **{name: row[name] for name in names})
            for row in search["front"]
        ]
        return cls(
            points,
            extra,
            metric,
            search["unit"] or "",
            None if metric is None else search["float"],
            search["budget"],
            f"Mixed precision, {len(points)} plans on the search set",
        )

    @property
    def everything(self) -> list[FrontPoint]:
        """All points that can be drawn."""
        return [p for p in (*self.points, *self.extra) if p.is_drawable]


def mark_efficient(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Mark the points on the Pareto front: those that none dominates.

    See `is_dominated`; points that cannot be drawn are never efficient.

    Example
    -------
    >>> points = [FrontPoint(0.2, 5), FrontPoint(0.3, 6), FrontPoint(0.5, 4)]
    >>> [p.ratio for p in mark_efficient(points) if p.efficient]
    [0.2, 0.5]
    """
    points = list(points)
    drawable = [(p.ratio, p.value) for p in points if p.is_drawable]
    return [
        dataclasses.replace(
            p,
            efficient=p.is_drawable
            and not is_dominated((p.ratio, p.value), drawable),
        )
        for p in points
    ]
