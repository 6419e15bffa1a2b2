"""Metrics as sums over utterances, so that they stream, split and resample.

A metric is a ratio of two sums over items, usually utterances: word errors
over reference words, loss over sentences. The sums come from SpeechBrain's own
metric objects.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
from speechbrain.utils.metric_stats import ErrorRateStats, MetricStats

from speechbrain_stablequant.errors import StableQuantError

__all__ = [
    "Interval",
    "Item",
    "Metric",
    "RateInterval",
    "check_paired",
    "interval_ends",
    "items_of",
]


class Item(NamedTuple):
    """What one utterance adds to a metric.

    Arguments
    ---------
    key : str
        Identifies the utterance, the same before and after quantization.
    errors : float
        Adds to the numerator: word errors, loss.
    weight : float
        Adds to the denominator: reference words, sentences.
    vector : str
        For metrics over pairs of utterances (EER): the utterance's embedding,
        float32 values in base64.
    """

    key: str
    errors: float
    weight: float
    vector: str = ""


@dataclass(frozen=True)
class Metric:
    """A ratio of sums; a search takes lower for better.

    Arguments
    ---------
    name : str
        Shown in tables: ``WER``, ``loss``.
    factor : float
        100 for rates in percent, so that differences are points.
    unit : str
        Unit of a difference.
    lower_is_better : bool, optional
        None where nobody has said, so that no report calls a change good or
        bad.

    Example
    -------
    >>> Metric("WER").value([Item("a", 1, 10), Item("b", 0, 10)])
    5.0
    """

    name: str = "WER"
    factor: float = 100.0
    unit: str = "points"
    lower_is_better: Optional[bool] = True

    def value(self, items: Iterable[Item]) -> float:
        """Return the metric over some items; nan without weight."""
        # Sorted, so that a sum of floats does not depend on who summed first.
        ordered = sorted(items)
        weight = sum(item.weight for item in ordered)
        if not weight:
            return float("nan")
        return self.factor * sum(item.errors for item in ordered) / weight

    def compare(
        self,
        before: Iterable[Item],
        after: Iterable[Item],
        confidence: float = 0.95,
        samples: int = 2000,
        seed: int = 1986,
    ) -> "Interval":
        """Return the change of the metric with a paired-bootstrap interval.

        Utterances are drawn with replacement, the same ones for both systems
        (Bisani and Ney, ICASSP 2004). A metric that is not a ratio of sums
        overrides this.

        Arguments
        ---------
        before : iterable of Item
            Items of the first system.
        after : iterable of Item
            Items of the second system, with the same keys.
        confidence : float
            Probability inside the interval.
        samples : int
            Number of resamples.
        seed : int
            Seed of the resampling.

        Returns
        -------
        Interval
            after - before, in units of the metric; with fewer than two items
            there is nothing to resample and its ends are nan.

        Raises
        ------
        StableQuantError
            If the two systems were not scored on the same items.

        Example
        -------
        >>> a = [Item(str(i), 0, 10) for i in range(20)]
        >>> b = [Item(str(i), i % 2, 10) for i in range(20)]
        >>> interval = Metric("WER").compare(a, b)
        >>> interval.difference, interval.low > 0
        (5.0, True)
        """
        first, second = sorted(before), sorted(after)
        check_paired([i.key for i in first], [i.key for i in second])
        difference = self.value(second) - self.value(first)
        if len(first) < 2:
            return Interval(difference, float("nan"), float("nan"), confidence)
        sums = np.array(
            [
                (a.errors, b.errors, a.weight, b.weight)
                for a, b in zip(first, second)
            ],
            dtype=np.float64,
        )
        # How often each utterance is drawn is all that its sums need: one
        # product with these counts replaces indexing every resample.
        draws = np.random.default_rng(seed).multinomial(
            len(sums), np.full(len(sums), 1 / len(sums)), size=samples
        )
        old_errors, new_errors, old_weight, new_weight = (draws @ sums).T
        # A draw of utterances without any reference words has no rate.
        with np.errstate(invalid="ignore", divide="ignore"):
            change = new_errors / new_weight - old_errors / old_weight
        ends = interval_ends(self.factor * change, confidence)
        return Interval(difference, *ends, confidence)

    def interval(
        self,
        items: Iterable[Item],
        confidence: float = 0.95,
        samples: int = 2000,
        seed: int = 1986,
    ) -> "RateInterval":
        """Return the metric of one system with its own interval.

        Two systems on the same items differ by much less than their intervals
        suggest; `compare` tells by how much.
        """
        ordered = sorted(items)
        # Against a system without errors the change is the metric itself.
        none = [item._replace(errors=0.0) for item in ordered]
        found = self.compare(none, ordered, confidence, samples, seed)
        return RateInterval(found.difference, found.low, found.high, confidence)


@dataclass(frozen=True)
class Interval:
    """A difference of a metric with its confidence interval."""

    difference: float
    low: float
    high: float
    confidence: float = 0.95

    def to_dict(self) -> dict:
        """Return plain data; ends that are not known become None."""
        return {
            "change": self.difference,
            "low": None if math.isnan(self.low) else self.low,
            "high": None if math.isnan(self.high) else self.high,
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.difference:+.2f}"
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class RateInterval:
    """A metric of one system with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def to_dict(self) -> dict:
        """Return plain data; what is not known becomes None."""
        row = {"value": self.value, "low": self.low, "high": self.high}
        known = {k: None if math.isnan(v) else v for k, v in row.items()}
        return {**known, "confidence": self.confidence}

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def check_paired(before: Collection, after: Collection) -> None:
    """Refuse two systems that were not scored on the same utterances.

    Arguments
    ---------
    before, after : collection of str
        Keys of the items, in the same order.

    Raises
    ------
    StableQuantError
        If the keys differ.
    """
    if before != after:
        raise StableQuantError(
            "The two systems were not scored on the same utterances "
            f"({len(before)} and {len(after)}): they cannot be compared."
        )


def interval_ends(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the ends of the interval that holds a part of the draws.

    Arguments
    ---------
    draws : array
        The metric in each resample; those without a rate are left out.
    confidence : float
        That part.

    Returns
    -------
    low, high : float
        nan when no draw has a rate.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def items_of(stats: MetricStats) -> list[Item]:
    """Read the items out of one of SpeechBrain's metric objects.

    This package's own classes whose metric is not a ratio of sums have
    ``quantization_metrics`` instead: metrics with their items, by name.

    Arguments
    ---------
    stats : MetricStats
        ``ErrorRateStats``, or any other that keeps a number for each
        utterance.

    Returns
    -------
    list of Item
        One for each utterance.
    """
    if isinstance(stats, ErrorRateStats):
        return [
            Item(
                str(s["key"]), float(s["num_edits"]), float(s["num_ref_tokens"])
            )
            for s in stats.scores
        ]
    return [
        Item(str(key), float(score), 1.0)
        for key, score in zip(stats.ids, stats.scores)
        if np.ndim(score) == 0
    ]
