"""Memory that the C library keeps although nobody uses it."""

import ctypes
import functools
from typing import Callable, Optional

__all__ = ["release_freed_memory"]


@functools.cache
def _malloc_trim() -> Optional[Callable[[int], int]]:
    """Return glibc's function, or None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def release_freed_memory() -> bool:
    """Give freed memory back to the system, where the C library can.

    Buffers that grow from call to call, as over utterances sorted by length,
    leave holes that are each too small for the next: without this, a pass
    over a sorted test set has ended with ten times the memory that it needs.

    Returns
    -------
    bool
        Whether the C library has such a function (glibc).
    """
    trim = _malloc_trim()
    if trim is None:
        return False
    trim(0)
    return True
