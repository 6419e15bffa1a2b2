"""Time several things in turns, so that a busy machine disturbs all alike."""

import time
from collections.abc import Mapping
from typing import Any, Callable

__all__ = ["in_turns", "timed"]


def timed(function: Callable, *arguments) -> tuple[float, Any]:
    """Call a function; return the seconds that it took, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def in_turns(
    timers: Mapping[str, Callable[[int], float]],
    rounds: int,
    seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Let each timer measure once a round, forwards and backwards.

    Timing one candidate after the other would charge a burst of other load, or
    a change of the clock rate, to whichever was running.

    Arguments
    ---------
    timers : dict
        By name: called with the number of the round, returns seconds.
    rounds : int
        How many rounds there are at least.
    seconds : float
        Go on until this time has passed.

    Returns
    -------
    dict
        Seconds of all rounds by name.

    Example
    -------
    >>> in_turns({"a": lambda turn: 1.0, "b": lambda turn: 2.0 + turn}, 2)
    {'a': [1.0, 1.0], 'b': [2.0, 3.0]}
    """
    found: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < rounds or time.perf_counter() < end:
        # Whoever follows a slow candidate finds colder caches: take turns in
        # that, too.
        for name in list(timers)[:: -1 if turn % 2 else 1]:
            found[name].append(timers[name](turn))
        turn += 1
    return found
