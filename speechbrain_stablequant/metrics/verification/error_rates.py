"""Equal error rate and minimum detection cost, by sorting.

Like SpeechBrain, a trial is rejected when its score is at or below the
threshold, and rates are float32. SpeechBrain also tries the midpoints between
scores: they give the same rates as the scores below them.
"""

from typing import Union

import numpy as np
import torch

from speechbrain_stablequant.errors import StableQuantError

__all__ = ["SortedTrials", "eer", "min_dcf"]


class SortedTrials:
    """Scores of trials, sorted once to be weighed many times.

    Arguments
    ---------
    scores : array
        One score for each trial, floats.
    target : array of bool
        Whether a trial is of one speaker.

    Raises
    ------
    StableQuantError
        If a score is not finite, or all trials are of one kind.

    Example
    -------
    >>> trials = SortedTrials([0.9, 0.2, 0.4, 0.1], [True, True, False, False])
    >>> trials.eer().tolist()
    [0.5]
    >>> trials.eer(np.array([[1, 1], [1, 0], [1, 1], [1, 1]])).tolist()
    [0.5, 0.0]
    """

    def __init__(self, scores, target):
        scores, target = _floats(scores), np.asarray(target, dtype=bool)
        _check(scores, target)
        self.size = len(scores)
        self._positive, positive = _sorted(scores, np.flatnonzero(target))
        self._negative, negative = _sorted(scores, np.flatnonzero(~target))
        self.thresholds = np.unique(scores)
        # How many trials of either kind are at or below each threshold
        self._rejected = positive.searchsorted(self.thresholds, side="right")
        self._declined = negative.searchsorted(self.thresholds, side="right")

    def error_rates(self, weights=None) -> tuple[np.ndarray, np.ndarray]:
        """Return false rejections and false acceptances at each threshold.

        Arguments
        ---------
        weights : array (trials, draws), optional
            How often each trial counts; several weightings at once.

        Returns
        -------
        rejected : array (thresholds, draws)
            Fractions in float32; nan where no positive trial has weight.
        accepted : array (thresholds, draws)
            The same for negative trials.
        """
        positive: Union[int, np.ndarray]
        negative: Union[int, np.ndarray]
        if weights is None:
            rejected, positive = self._rejected[:, None], len(self._positive)
            declined, negative = self._declined[:, None], len(self._negative)
        else:
            weights = self._checked(weights)
            rejected, positive = _cumulated(
                weights, self._positive, self._rejected
            )
            declined, negative = _cumulated(
                weights, self._negative, self._declined
            )
        return (
            _fraction(rejected, positive),
            _fraction(negative - declined, negative),
        )

    def _checked(self, weights) -> np.ndarray:
        weights = np.asarray(weights)
        if weights.ndim != 2 or len(weights) != self.size:
            raise StableQuantError(
                f"Weights of shape {weights.shape} do not fit {self.size} "
                "trials: expected (trials, draws)."
            )
        return weights

    def eer(self, weights=None) -> np.ndarray:
        """Return the equal error rate of each weighting, as fractions."""
        rejected, accepted = self.error_rates(weights)
        best = _balanced(rejected, accepted)
        accepted = _at(accepted, best).astype(np.float64)
        return (accepted + _at(rejected, best)) / 2

    def min_dcf(
        self, weights=None, c_miss=1.0, c_fa=1.0, p_target=0.01
    ) -> np.ndarray:
        """Return the minimum detection cost of each weighting."""
        rates = self.error_rates(weights)
        cost = _detection_cost(*rates, c_miss, c_fa, p_target)
        return cost.min(axis=0).astype(np.float64)


def eer(positive, negative) -> tuple[float, float]:
    """Return the equal error rate and its threshold.

    Equal to ``speechbrain.utils.metric_stats.EER``, also on tied scores, in
    O(N log N) instead of O(N^2).

    Arguments
    ---------
    positive : array
        Scores of trials of one speaker.
    negative : array
        Scores of trials of two speakers.

    Returns
    -------
    rate : float
        A fraction, not percent.
    threshold : float
        The score at which it is reached.

    Raises
    ------
    StableQuantError
        If there are no scores of one kind, or some are not finite.

    Example
    -------
    >>> eer([0.6, 0.7, 0.8, 0.5], [0.4, 0.3, 0.2, 0.1])[0]
    0.0
    """
    trials = _joined(positive, negative)
    rejected, accepted = trials.error_rates()
    best = _balanced(rejected, accepted)[0]
    miss, false = rejected[best, 0], accepted[best, 0]
    threshold = trials.thresholds[best]
    # Where rounding makes a difference smaller than itself, SpeechBrain moves
    # on to the midpoint, although its rates are the same.
    if best + 1 < len(trials.thresholds) and _narrow(miss, false) < _wide(
        miss, false
    ):
        threshold = (threshold + trials.thresholds[best + 1]) / 2
    return (float(false) + float(miss)) / 2, float(threshold)


def min_dcf(
    positive, negative, c_miss=1.0, c_fa=1.0, p_target=0.01
) -> tuple[float, float]:
    """Return the minimum detection cost and its threshold.

    Equal to ``speechbrain.utils.metric_stats.minDCF`` in O(N log N) time and
    O(N) memory.

    Arguments
    ---------
    positive : array
        Scores of trials of one speaker.
    negative : array
        Scores of trials of two speakers.
    c_miss : float
        Cost of a false rejection.
    c_fa : float
        Cost of a false acceptance.
    p_target : float
        Prior probability of a trial of one speaker.

    Returns
    -------
    cost : float
        Not normalised, as in SpeechBrain.
    threshold : float
        The score at which it is reached.

    Raises
    ------
    StableQuantError
        If there are no scores of one kind, or some are not finite.

    Example
    -------
    >>> min_dcf([0.6, 0.7, 0.8, 0.5], [0.4, 0.3, 0.2, 0.1])[0]
    0.0
    """
    trials = _joined(positive, negative)
    rates = trials.error_rates()
    cost = _detection_cost(*rates, c_miss, c_fa, p_target)[:, 0]
    best = int(np.argmin(cost))
    return float(cost[best]), float(trials.thresholds[best])


def _floats(scores) -> np.ndarray:
    """Return scores in their own precision; lists become float32 as in torch."""
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().cpu()
        if scores.dtype == torch.bfloat16:
            scores = scores.float()
        scores = scores.numpy()
    elif not isinstance(scores, np.ndarray):
        scores = np.asarray(list(scores), dtype=np.float32)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float32)
    return scores.reshape(-1)


def _joined(positive, negative) -> SortedTrials:
    positive, negative = _floats(positive), _floats(negative)
    target = np.zeros(len(positive) + len(negative), dtype=bool)
    target[: len(positive)] = True
    return SortedTrials(np.concatenate([positive, negative]), target)


def _check(scores: np.ndarray, target: np.ndarray) -> None:
    if scores.shape != target.shape:
        raise StableQuantError(
            f"{len(scores)} scores but {target.shape} labels: each trial "
            "needs one of both."
        )
    for kind, count in (
        ("positive trials (of one speaker)", int(target.sum())),
        ("negative trials (of two speakers)", int((~target).sum())),
    ):
        if not count:
            raise StableQuantError(
                f"There are no {kind} among {len(scores)} scored ones: an "
                "error rate needs both kinds."
            )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise StableQuantError(
            f"{len(bad)} of {len(scores)} scores are not finite (the first is "
            f"{scores[bad[0]]}): the embeddings are broken, or of no length."
        )


def _sorted(scores, indices) -> tuple[np.ndarray, np.ndarray]:
    order = indices[np.argsort(scores[indices], kind="stable")]
    return order, scores[order]


def _cumulated(weights, order, counts) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight at or below each threshold, and all of it."""
    below = np.zeros((len(order) + 1, weights.shape[1]))
    np.cumsum(weights[order], axis=0, out=below[1:])
    return below[counts], below[-1]


def _fraction(part, whole) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part, np.float32) / np.asarray(whole, np.float32)


def _at(rates: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the rate of each draw at a threshold of its own."""
    return np.take_along_axis(rates, thresholds[None], 0)[0]


def _narrow(first, second) -> np.ndarray:
    return np.abs(second - first)


def _wide(first, second) -> np.ndarray:
    return np.abs(np.asarray(second, np.float64) - first)


def _balanced(rejected, accepted) -> np.ndarray:
    """Return for each draw the threshold whose two rates are nearest.

    Both rates are monotonous, so it is one of the two around their crossing.
    """
    crossing = np.count_nonzero(accepted > rejected, axis=0)
    before = np.maximum(crossing - 1, 0)
    right = [_at(rates, crossing) for rates in (rejected, accepted)]
    left = [_at(rates, before) for rates in (rejected, accepted)]
    # SpeechBrain compares a difference that float32 has rounded with one that
    # it has not, which decides when both are equally near.
    return np.where(_narrow(*right) < _wide(*left), crossing, before)


def _detection_cost(rejected, accepted, c_miss, c_fa, p_target) -> np.ndarray:
    # Python floats keep the arrays in float32, in which SpeechBrain computes
    c_miss, c_fa, p_target = float(c_miss), float(c_fa), float(p_target)
    return c_miss * rejected * p_target + c_fa * accepted * (1 - p_target)
