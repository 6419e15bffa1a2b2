"""Which points are on a Pareto front."""

from collections.abc import Iterable

__all__ = ["is_dominated"]


def is_dominated(point: tuple, others: Iterable[tuple]) -> bool:
    """Whether another point is no worse in all coordinates and better in one.

    Arguments
    ---------
    point : tuple
        Coordinates of which less is better, such as bytes and error rate.
    others : iterable of tuple
        Points to compare it with; it may be among them.

    Example
    -------
    >>> points = [(0.2, 5), (0.3, 6), (0.5, 4)]
    >>> [is_dominated(point, points) for point in points]
    [False, True, False]
    """
    return any(
        other != point and all(a <= b for a, b in zip(other, point))
        for other in others
    )
