"""Attributes of single modules that are replaced for a while."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

__all__ = ["replaced"]

_ABSENT = object()


@contextlib.contextmanager
def replaced(changes: Iterable[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """Set attributes of modules, methods included, inside a ``with`` block.

    Arguments
    ---------
    changes : iterable of (torch.nn.Module, str, object)
        Modules, names of their attributes, and values. Made one by one: a
        later change may look at what an earlier one has set.

    Example
    -------
    >>> layer = nn.Identity()
    >>> with replaced([(layer, "forward", lambda x: 2 * x)]):
    ...     layer(3)
    6
    >>> layer(3)
    3
    """
    before = {}
    try:
        for module, name, value in changes:
            # One may be changed twice: what was there first is restored.
            old = vars(module).get(name, _ABSENT)
            before.setdefault((module, name), old)
            vars(module)[name] = value
        yield
    finally:
        for (module, name), old in before.items():
            if old is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = old
