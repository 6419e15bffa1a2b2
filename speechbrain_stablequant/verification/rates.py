"""Equal error rate and minimum detection cost, by sorting."""

import numpy as np

__all__ = ["eer", "min_dcf"]

_NEAR = 1e-6  # far more than float32 rounds a difference of two rates by


def _rates(positive, negative):
    """Return thresholds, false rejections and false acceptances (float32).

    Like the toolkit, a trial is rejected when its score is at or below the
    threshold, and each score is a threshold. The toolkit also tries the
    midpoints; they give the same rates.
    """
    positive = np.sort(np.asarray(positive, dtype=np.float32).reshape(-1))
    negative = np.sort(np.asarray(negative, dtype=np.float32).reshape(-1))
    thresholds = np.unique(np.concatenate([positive, negative]))
    rejected = np.searchsorted(positive, thresholds, side="right")
    accepted = len(negative) - np.searchsorted(
        negative, thresholds, side="right"
    )
    size = np.float32
    return (
        thresholds,
        rejected.astype(size) / size(len(positive)),
        accepted.astype(size) / size(len(negative)),
    )


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

    Example
    -------
    >>> eer([0.6, 0.7, 0.8, 0.5], [0.4, 0.3, 0.2, 0.1])[0]
    0.0
    """
    thresholds, rejected, accepted = _rates(positive, negative)
    wide = np.abs(accepted.astype(np.float64) - rejected)
    narrow = np.abs(accepted - rejected)
    # The toolkit keeps the first smallest difference, comparing one that
    # float32 has rounded with one that it has not: this decides ties.
    near = np.flatnonzero(wide <= wide.min() + _NEAR)
    best = near[0]
    for index in near[1:]:
        if narrow[index] < wide[best]:
            best = index
    rate = (float(accepted[best]) + float(rejected[best])) / 2
    return rate, float(thresholds[best])


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
        Not normalised, as in the toolkit.
    threshold : float
        The score at which it is reached.

    Example
    -------
    >>> min_dcf([0.6, 0.7, 0.8, 0.5], [0.4, 0.3, 0.2, 0.1])[0]
    0.0
    """
    thresholds, rejected, accepted = _rates(positive, negative)
    cost = c_miss * rejected * p_target + c_fa * accepted * (1 - p_target)
    best = int(np.argmin(cost))
    return float(cost[best]), float(thresholds[best])
