"""The metrics that a Brain holds, and scoring it on its validation data."""

from collections.abc import Iterable, Iterator
from typing import Any, Optional

import speechbrain as sb
import torch
from speechbrain.utils.metric_stats import ErrorRateStats, MetricStats

from speechbrain_stablequant.errors import KnobError, nearest
from speechbrain_stablequant.metrics.evaluator import Evaluator
from speechbrain_stablequant.metrics.metric import Item, Metric, items_of

__all__ = ["BrainEvaluator", "find_metrics", "metrics_of"]


def metrics_of(brain: sb.Brain) -> dict[str, MetricStats]:
    """Return SpeechBrain metric objects that a Brain holds, by attribute."""
    return {
        name: value
        for name, value in vars(brain).items()
        if isinstance(value, MetricStats)
    }


def find_metrics(brain: sb.Brain) -> dict[str, tuple[Metric, list[Item]]]:
    """Return the metrics that the last pass filled, with their items."""
    found = {}
    for attribute, stats in metrics_of(brain).items():
        found.update(_measures(attribute, stats))
    return found


def _measures(attribute: str, stats: MetricStats) -> dict:
    """Return metric and items by name; a class of ours may hold several."""
    if hasattr(stats, "quantization_metrics"):
        return stats.quantization_metrics()
    items = items_of(stats)
    metric = _metric_for(attribute, stats)
    return {metric.name: (metric, items)} if items else {}


def _metric_for(attribute: str, stats: MetricStats) -> Metric:
    name = attribute
    for ending in ("_metric", "_metrics", "_stats"):
        if name.endswith(ending):
            name = name[: -len(ending)]
    if isinstance(stats, ErrorRateStats):
        return Metric(name.upper() if len(name) <= 4 else name)
    if _says_error(attribute):
        return Metric(name)
    # PESQ, STOI, an accuracy, a loss: neither rate nor direction is known.
    return Metric(name, factor=1.0, unit="", lower_is_better=None)


LOSS = Metric("loss", factor=100.0, unit="hundredths")


class BrainEvaluator(Evaluator):
    """Scores a Brain on a random sample of its validation data.

    The recipe's own loader and ``evaluate_batch`` are used, in the VALID
    stage. The metric is the recipe's WER, else another of its error rates,
    else its loss.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    sample : BatchSample
        The batches to score on.
    objective : str
        ``auto``, ``loss``, or a metric (``WER`` or ``wer_metric``).
    """

    def __init__(self, brain: sb.Brain, sample, objective="auto"):
        self.brain, self.sample, self.objective = brain, sample, objective
        self.num_batches = len(sample)
        self._source: Optional[tuple[str, str]] = None
        self._metric: Optional[Metric] = None

    @property
    def metric(self) -> Metric:
        """What is measured; the first batch shows it."""
        if self._metric is None:
            # A journal may have answered everything so far.
            for _, batch in self.batches([0]):
                self.evaluate(batch)
        return self._metric or LOSS

    def batches(self, indices: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield the chosen batches with their indices."""
        return self.sample.load(indices)

    def fingerprint(self) -> Any:
        """Return which utterances are scored."""
        return [self.objective, self.sample.fingerprint()]

    def evaluate(self, batch) -> list[Item]:
        """Run the recipe's validation step on a batch."""
        for stats in metrics_of(self.brain).values():
            stats.clear()
        with torch.no_grad():
            loss = self.brain.evaluate_batch(batch, stage=sb.Stage.VALID)
        if self._metric is None:
            self._choose()
        if self._source is not None:
            attribute, name = self._source
            stats = getattr(self.brain, attribute)
            return _measures(attribute, stats).get(name, (None, []))[1]
        ids = getattr(batch, "id", None) or ["batch"]
        return [Item("+".join(map(str, ids)), float(loss) * len(ids), len(ids))]

    def _choose(self) -> None:
        """Choose the metric by what the first batch has filled."""
        filled = {}
        for attribute, stats in metrics_of(self.brain).items():
            for name, (metric, _) in _measures(attribute, stats).items():
                filled[name] = (attribute, stats, metric)
        name = None
        if self.objective == "auto":
            name = _preferred(filled)
        elif self.objective != "loss":
            name = self._named(filled)
        if name is None:
            self._metric = LOSS
        else:
            attribute, _, self._metric = filled[name]
            self._source = (attribute, name)

    def _named(self, filled) -> str:
        """Return the metric that the user asked for, by either name."""
        wanted = self.objective.lower()
        options = {wanted, f"{wanted}_metric", f"{wanted}_metrics"}
        for name, (attribute, _, metric) in filled.items():
            if name.lower() == wanted or attribute.lower() in options:
                if metric.lower_is_better:
                    return name
                raise KnobError(
                    f"objective '{self.objective}': whether its lower values "
                    "are the better ones is not known, and a search needs one "
                    "whose are. Use loss, an error rate, or a metric with "
                    "'error' in its name."
                )
        attributes = (attribute for attribute, _, _ in filled.values())
        known = ["auto", "loss", *dict.fromkeys(attributes), *filled]
        raise KnobError(
            f"objective '{self.objective}' is not a metric that this "
            "recipe fills in validation." + nearest(self.objective, known)
        )


def _preferred(filled) -> Optional[str]:
    """Return the metric to judge by: WER, an error rate, or None (loss).

    A plain ``MetricStats`` may be higher-is-better; its name must say error.
    """
    wer = [n for n, (a, _, _) in filled.items() if "wer" in a.lower()]
    rates = [n for n, (_, s, _) in filled.items() if _is_error_rate(s)]
    errors = [n for n, (a, _, _) in filled.items() if _says_error(a)]
    return next(iter([*wer, *rates, *errors]), None)


def _says_error(attribute: str) -> bool:
    """Whether a plain ``MetricStats`` is an error rate, by its name."""
    return any(word in attribute.lower() for word in ("error", "wer"))


def _is_error_rate(stats: MetricStats) -> bool:
    return isinstance(stats, ErrorRateStats) or hasattr(
        stats, "quantization_metrics"
    )
