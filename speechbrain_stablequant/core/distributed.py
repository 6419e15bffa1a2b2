"""The little that a search needs of ``torch.distributed``."""

from typing import Any

import torch.distributed as dist

__all__ = ["gather", "rank", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process, 0 when alone."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes, 1 when alone."""
    return dist.get_world_size() if _active() else 1


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank.

    Arguments
    ---------
    value : any
        Something that pickles; it travels between our own processes only.

    Example
    -------
    >>> gather("alone")
    ['alone']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
