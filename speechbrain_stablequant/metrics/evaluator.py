"""Evaluators: what a search scores a model with, batch by batch."""

from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.metric import Item, Metric

__all__ = ["DistanceEvaluator", "Evaluator", "ScoreEvaluator"]


class Evaluator:
    """Scores a model batch by batch; what a search works with.

    A subclass sets ``metric`` (None: only outputs can be compared with those
    of the float model) and ``num_batches``, and implements `batches` and
    `evaluate`. Batches must be the same each time.
    """

    metric: Optional[Metric]
    num_batches: int

    def batches(self, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield the chosen batches with their indices, in that order."""
        raise StableQuantError(f"{type(self).__name__} has no batches().")

    def evaluate(self, batch: Any) -> list[Item]:
        """Run the model as it is now on a batch and return its items."""
        raise StableQuantError(f"{type(self).__name__} has no evaluate().")

    def fingerprint(self) -> Any:
        """Return plain data that changes when the data does."""
        return None


class ScoreEvaluator(Evaluator):
    """An evaluator around ``score(model) -> float``: one batch, one item."""

    num_batches = 1

    def __init__(self, model, score):
        self.model, self.score = model, score
        self.metric = Metric("score", factor=1.0, unit="")

    def batches(self, indices):
        """Yield a single batch that stands for all data."""
        return ((index, None) for index in indices)

    def evaluate(self, batch):
        """Return the score as one item."""
        return [Item("all", float(self.score(self.model)), 1.0)]


class DistanceEvaluator(Evaluator):
    """Runs data without labels: only outputs can be compared.

    Arguments
    ---------
    run : callable
        Called with a batch.
    batches : iterable
        The data.
    """

    metric = None

    def __init__(self, run: Callable[[Any], Any], batches: Iterable[Any]):
        self.run, self.data = run, list(batches)
        self.num_batches = len(self.data)

    def batches(self, indices):
        """Yield the chosen batches with their indices."""
        return ((index, self.data[index]) for index in indices)

    def evaluate(self, batch):
        """Run the model; there is nothing to score."""
        self.run(batch)
        return []
