"""Error rates of speaker verification as metrics that can be resampled."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

import numpy as np

from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.metric import (
    Interval,
    Item,
    Metric,
    RateInterval,
    check_paired,
    interval_ends,
)
from speechbrain_stablequant.metrics.verification.cosine import CosineBackend
from speechbrain_stablequant.metrics.verification.error_rates import (
    SortedTrials,
)
from speechbrain_stablequant.metrics.verification.trials import (
    Pairs,
    canonical_id,
)

__all__ = ["RATES", "VerificationMetric", "embedding_item"]

RATES = {"EER": SortedTrials.eer, "minDCF": SortedTrials.min_dcf}
_ELEMENTS = 1 << 20  # of a matrix of weights: small ones stay in cache


def embedding_item(key: str, embedding: np.ndarray) -> Item:
    """Return the item of an utterance.

    Arguments
    ---------
    key : str
        Utterance id.
    embedding : array (dimensions,)
        Its embedding.

    Returns
    -------
    Item
        With the embedding as its ``vector``.

    Example
    -------
    >>> embedding_item("a/1", np.zeros(3)).vector
    'AAAAAAAAAAAAAAAA'
    """
    data = np.asarray(embedding, dtype="<f4").tobytes()
    return Item(key, 0.0, 1.0, base64.b64encode(data).decode("ascii"))


@dataclass(frozen=True)
class VerificationMetric(Metric):
    """An error rate over trials, each of two utterances.

    Items are utterances with their embeddings. Over some of the utterances
    the rate is that of the trials which they complete; of several items of an
    utterance the first counts. Intervals come from drawing speakers, not
    trials: trials of one speaker are far from independent of each other.
    Cohorts of score normalization are not drawn.

    Arguments
    ---------
    name : str
        Shown in tables.
    factor : float
        100 for the EER, in percent. 100 for the minDCF too, as SpeechBrain's
        script logs it: with the usual costs and prior that is the cost
        relative to a system that rejects everything.
    unit : str
        Unit of a difference.
    backend : CosineBackend
        How trials are scored.
    rate : str
        ``EER`` or ``minDCF``.

    Raises
    ------
    KnobError
        If the rate is unknown, or there is no backend.

    Example
    -------
    >>> from speechbrain_stablequant.metrics.verification.trials import Trials
    >>> trials = Trials([(1, "a/1", "a/2"), (0, "a/1", "b/1")])
    >>> metric = VerificationMetric.of("EER", CosineBackend(trials))
    >>> vectors = {"a/1": [1, 0], "a/2": [1, 0.1], "b/1": [0, 1]}
    >>> metric.value(embedding_item(k, v) for k, v in vectors.items())
    0.0
    """

    # Fields after those with defaults need one; `__post_init__` refuses it.
    backend: CosineBackend = None  # type: ignore[assignment]
    rate: str = "EER"

    def __post_init__(self):
        check_choice("Error rate", self.rate, RATES)
        if not isinstance(self.backend, CosineBackend):
            raise KnobError("A VerificationMetric needs a backend.")

    @classmethod
    def of(cls, rate: str, backend: CosineBackend) -> "VerificationMetric":
        """Return the metric of a rate, by its usual name and unit.

        Arguments
        ---------
        rate : str
            ``EER`` or ``minDCF``.
        backend : CosineBackend
            How trials are scored.

        Returns
        -------
        VerificationMetric
            The metric.
        """
        return cls(
            name=rate,
            factor=100.0,
            unit="points" if rate == "EER" else "",
            backend=backend,
            rate=rate,
        )

    def value(self, items: Iterable[Item]) -> float:
        """Return the rate over the trials that some items complete.

        Arguments
        ---------
        items : iterable of Item
            One for each utterance.

        Returns
        -------
        float
            nan when no trial of one speaker, or none of two, is complete, or
            an embedding is not finite.
        """
        return self._value(*self._sorted(items)[1:])

    def compare(
        self, before, after, confidence=0.95, samples=2000, seed=1986
    ) -> Interval:
        """Return the change of the rate with a paired-bootstrap interval.

        Arguments and results are those of `Metric.compare`; the ends are nan
        with fewer than two speakers. Speakers are drawn with replacement, the
        same ones for both systems. A trial of two speakers then occurs as
        often as the product of how often each was drawn, one of a single
        speaker as often as that was.
        """
        first, pairs, old = self._sorted(before)
        second, _, new = self._sorted(after)
        check_paired(first, second)
        change = self._value(pairs, new) - self._value(pairs, old)
        drawn = self._resampled(pairs, (old, new), samples, seed)
        ends = interval_ends(drawn[1] - drawn[0], confidence)
        return Interval(change, *ends, confidence)

    def interval(
        self, items, confidence=0.95, samples=2000, seed=1986
    ) -> RateInterval:
        """Return the rate of one system with its own interval.

        As `Metric.interval`; the ends are nan with fewer than two speakers.
        """
        _, pairs, scores = self._sorted(items)
        drawn = self._resampled(pairs, (scores,), samples, seed)
        ends = interval_ends(drawn[0], confidence)
        return RateInterval(self._value(pairs, scores), *ends, confidence)

    def _sorted(self, items) -> tuple[tuple, Pairs, Optional[SortedTrials]]:
        """Return keys, their trials, and the scores unless one kind lacks."""
        vectors: dict[str, str] = {}
        for item in sorted(items):
            vectors.setdefault(canonical_id(item.key), item.vector)
        keys = tuple(sorted(vectors))
        pairs = self.backend.trials.complete(keys)
        if not pairs.comparable:
            return keys, pairs, None
        embeddings = _decode(keys, [vectors[key] for key in keys])
        if not np.isfinite(embeddings).all():
            return keys, pairs, None  # a candidate that broke the model
        pairs, scores = self.backend.score(keys, embeddings)
        return keys, pairs, SortedTrials(scores, pairs.target)

    def _value(self, pairs: Pairs, scores: Optional[SortedTrials]) -> float:
        if scores is None:
            return float("nan")
        return self.factor * float(RATES[self.rate](scores)[0])

    def _resampled(self, pairs, systems, samples, seed) -> np.ndarray:
        """Return the rates of each system in each draw of speakers."""
        rates = np.full((len(systems), samples), np.nan)
        if pairs.speakers < 2 or any(s is None for s in systems):
            return rates
        count = pairs.speakers
        drawn = np.random.default_rng(seed).multinomial(
            count, np.full(count, 1 / count), size=samples
        )
        drawn = np.ascontiguousarray(drawn.T, dtype=np.float32)
        step = max(1, _ELEMENTS // len(pairs.trials))
        for start in range(0, samples, step):
            part = slice(start, start + step)
            weights = pairs.weights(drawn[:, part])
            for row, scores in zip(rates, systems):
                row[part] = RATES[self.rate](scores, weights)
        return self.factor * rates


def _decode(keys: tuple[str, ...], vectors: list[str]) -> np.ndarray:
    rows: list[np.ndarray] = []
    for key, vector in zip(keys, vectors):
        try:
            row = np.frombuffer(base64.b64decode(vector, validate=True), "<f4")
        except (binascii.Error, ValueError) as error:
            raise StableQuantError(
                f"The item of '{key}' has a damaged embedding ({error})."
            ) from error
        if not len(row) or len(row) != len(rows[0] if rows else row):
            raise StableQuantError(
                f"The item of '{key}' has an embedding of {len(row)} values, "
                f"that of '{keys[0]}' one of {len(rows[0]) if rows else 0}: "
                "items of verification have embeddings, all of one size."
            )
        rows.append(row)
    return np.stack(rows)
