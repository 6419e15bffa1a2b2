"""From embeddings to the scores of trials."""

import functools
from dataclasses import dataclass
from typing import Optional

import numpy as np

from speechbrain_stablequant.core.options import (
    check_choice,
    check_whole_number,
)
from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.verification.normalization import (
    NORMALIZATIONS,
    CohortStatistics,
    cohort_statistics,
    cosine_scores,
    normalized,
    unit_rows,
)
from speechbrain_stablequant.metrics.verification.trials import Pairs, Trials

__all__ = ["CosineBackend", "check_score_norm"]


def check_score_norm(score_norm, has_cohort: bool, cohort_size) -> None:
    """Check the options of score normalization.

    Arguments
    ---------
    score_norm : str or None
        ``z-norm``, ``t-norm``, ``s-norm`` or None.
    has_cohort : bool
        Whether there is a cohort.
    cohort_size : int or None
        How many of the cohort's scores to take.

    Raises
    ------
    KnobError
        If they are unknown or do not go together.
    """
    if score_norm is None:
        return
    check_choice("score_norm", score_norm, NORMALIZATIONS)
    if not has_cohort:
        raise KnobError(
            f"score_norm '{score_norm}' needs a cohort: ids of training "
            "utterances, whose embeddings must be appended too."
        )
    if cohort_size is not None:  # None: all of the cohort
        check_whole_number("cohort_size", cohort_size, 2)


@dataclass(frozen=True)
class CosineBackend:
    """Scores trials by cosine similarity, normalized if wanted.

    Arguments
    ---------
    trials : Trials
        What to score.
    score_norm : str, optional
        ``z-norm``, ``t-norm`` or ``s-norm``.
    cohort : tuple of str
        Canonical ids of the impostors to normalize against.
    cohort_size : int, optional
        How many of their highest scores to take for each utterance; all
        when None.

    Raises
    ------
    KnobError
        If the options of normalization do not go together.

    Example
    -------
    >>> backend = CosineBackend(Trials([(0, "a/1", "b/1")]))
    >>> backend.score(("a/1", "b/1"), np.eye(2, dtype=np.float32))[1]
    array([0.], dtype=float32)
    """

    trials: Trials
    score_norm: Optional[str] = None
    cohort: tuple[str, ...] = ()
    cohort_size: Optional[int] = None

    def __post_init__(self):
        check_score_norm(self.score_norm, bool(self.cohort), self.cohort_size)
        known = len(self.cohort)
        if self.score_norm and (self.cohort_size or 2) > known:
            raise KnobError(
                f"cohort_size is {self.cohort_size}, but the cohort has "
                f"{known} utterances; normalization needs at least two, and "
                "no more than there are."
            )

    def uses(self, key: str) -> bool:
        """Return whether an utterance (canonical id) has any part in this."""
        return key in self.trials or (
            self.score_norm is not None and key in self._cohort_set
        )

    @functools.cached_property
    def _cohort_set(self) -> frozenset[str]:
        return frozenset(self.cohort)

    def score(
        self, keys: tuple[str, ...], embeddings: np.ndarray
    ) -> tuple[Pairs, np.ndarray]:
        """Score the trials that some utterances complete.

        Arguments
        ---------
        keys : tuple of str
            Canonical ids.
        embeddings : array (utterances, dimensions)
            In float32. When only a part of the cohort is there, that part is
            normalized against.

        Returns
        -------
        pairs : Pairs
            The complete trials.
        scores : array (trials,)
            Their scores, float32.

        Raises
        ------
        StableQuantError
            If an embedding is not finite, or scores cannot be normalized.
        """
        pairs = self.trials.complete(keys)
        if not len(pairs.trials):
            return pairs, np.empty(0, dtype=np.float32)
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            bad = keys[int(np.argmin(finite))]
            raise StableQuantError(
                f"The embeddings of {int((~finite).sum())} of {len(keys)} "
                f"utterances are not finite, the first that of '{bad}': the "
                "model is broken, or its activations overflow."
            )
        units = unit_rows(embeddings[pairs.rows])
        scores = cosine_scores(units, pairs.enrol, pairs.test)
        if self.score_norm is None:
            return pairs, scores
        found = self._statistics(keys, embeddings, units, pairs)
        sides = (
            CohortStatistics(*(values[side] for values in found))
            for side in (pairs.enrol, pairs.test)
        )
        scores = normalized(scores, self.score_norm, *sides)
        return pairs, scores.astype(np.float32)

    def _statistics(self, keys, embeddings, units, pairs) -> CohortStatistics:
        wanted = self._cohort_set
        present = [i for i, key in enumerate(keys) if key in wanted]
        if len(present) < 2:
            raise StableQuantError(
                f"score_norm '{self.score_norm}': {len(present)} of "
                f"{len(wanted)} cohort utterances have embeddings (the cohort "
                f"names e.g. '{self.cohort[0]}'), at least two are needed. "
                "Append them as well, or leave score_norm out."
            )
        size = min(self.cohort_size or len(present), len(present))
        found = cohort_statistics(units, unit_rows(embeddings[present]), size)
        flat = np.flatnonzero(~(found.deviation > 0))
        if len(flat):
            raise StableQuantError(
                f"score_norm '{self.score_norm}': the scores of "
                f"'{keys[pairs.rows[flat[0]]]}' against {size} cohort "
                "utterances are all the same, so they cannot be normalized."
            )
        return found
