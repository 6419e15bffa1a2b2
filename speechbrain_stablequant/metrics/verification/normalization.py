"""Cosine scores and their normalization against a cohort of impostors.

The formulas are those of SpeechBrain's ``speaker_verification_cosine.py``,
over arrays instead of one trial at a time.
"""

from typing import Callable, NamedTuple, Optional

import numpy as np

from speechbrain_stablequant.errors import StableQuantError

__all__ = [
    "NORMALIZATIONS",
    "CohortStatistics",
    "cohort_statistics",
    "cosine_scores",
    "normalized",
    "unit_rows",
]

# Of a score normalized by the enrolment side and by the test side.
NORMALIZATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "z-norm": lambda by_enrol, by_test: by_enrol,
    "t-norm": lambda by_enrol, by_test: by_test,
    "s-norm": lambda by_enrol, by_test: 0.5 * (by_enrol + by_test),
}

_EPS = 1e-6  # of SpeechBrain's CosineSimilarity
_ELEMENTS = 1 << 22  # of a temporary array: 16 MB


class CohortStatistics(NamedTuple):
    """Mean and deviation of the scores of utterances against a cohort."""

    mean: np.ndarray
    deviation: np.ndarray


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings scaled to length one; zeros stay zeros.

    Arguments
    ---------
    embeddings : array (utterances, dimensions)
        In float32.

    Returns
    -------
    array (utterances, dimensions)
        Their inner products are cosine similarities.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.maximum(length, np.float32(_EPS))


def cosine_scores(
    units: np.ndarray, enrol: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Return the cosine similarity of each trial.

    Arguments
    ---------
    units : array (utterances, dimensions)
        Embeddings of length one.
    enrol : array of int
        Enrolment row of each trial.
    test : array of int
        Test row of each trial.

    Returns
    -------
    array (trials,)
        One score for each trial.
    """
    scores = np.empty(len(enrol), dtype=units.dtype)
    step = max(1, _ELEMENTS // max(1, units.shape[1]))
    for start in range(0, len(enrol), step):
        part = slice(start, start + step)
        scores[part] = np.einsum(
            "ij,ij->i", units[enrol[part]], units[test[part]]
        )
    return scores


def cohort_statistics(
    units: np.ndarray, cohort: np.ndarray, cohort_size: Optional[int] = None
) -> CohortStatistics:
    """Return what normalization needs to know of each utterance.

    Arguments
    ---------
    units : array (utterances, dimensions)
        Embeddings of length one.
    cohort : array (impostors, dimensions)
        The cohort's, of length one too.
    cohort_size : int, optional
        How many of the highest scores of each utterance to take (adaptive
        normalization); all when None.

    Returns
    -------
    CohortStatistics
        Mean and unbiased standard deviation for each utterance.

    Raises
    ------
    StableQuantError
        If fewer than two scores are to be taken, or more than there are.
    """
    size = len(cohort) if cohort_size is None else cohort_size
    if not 2 <= size <= len(cohort):
        raise StableQuantError(
            f"Score normalization over {size} of {len(cohort)} cohort "
            "utterances: it needs at least two, and no more than there are."
        )
    mean, deviation = np.empty(len(units)), np.empty(len(units))
    step = max(1, _ELEMENTS // len(cohort))
    for start in range(0, len(units), step):
        part = slice(start, start + step)
        scores = units[part] @ cohort.T
        if size < len(cohort):
            scores = np.partition(scores, len(cohort) - size, axis=1)
            scores = scores[:, len(cohort) - size :]
        mean[part] = scores.mean(axis=1, dtype=np.float64)
        deviation[part] = scores.std(axis=1, ddof=1, dtype=np.float64)
    return CohortStatistics(mean, deviation)


def normalized(
    scores: np.ndarray,
    score_norm: str,
    enrol: CohortStatistics,
    test: CohortStatistics,
) -> np.ndarray:
    """Return normalized scores.

    Arguments
    ---------
    scores : array (trials,)
        Cosine similarities.
    score_norm : str
        ``z-norm`` (by the enrolment side), ``t-norm`` (by the test side) or
        ``s-norm`` (the mean of both).
    enrol : CohortStatistics
        Of each trial's enrolment utterance.
    test : CohortStatistics
        Of each trial's test utterance.

    Returns
    -------
    array (trials,)
        In float64.

    Example
    -------
    >>> one = CohortStatistics(np.array([0.1]), np.array([0.2]))
    >>> normalized(np.array([0.5]), "s-norm", one, one).round(6).tolist()
    [2.0]
    """
    by_side = ((scores - x.mean) / x.deviation for x in (enrol, test))
    return NORMALIZATIONS[score_norm](*by_side)
