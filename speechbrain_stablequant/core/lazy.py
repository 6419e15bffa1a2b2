"""Names of a package that are imported when they are first used."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any, Callable

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package.

    Arguments
    ---------
    package : str
        Its name.
    homes : dict
        Module below it by the name that is defined there. A name must not be
        that of a module of the package: importing the module would hide it.

    Returns
    -------
    tuple of callable

    Example
    -------
    >>> found, _ = lazy_names("speechbrain_stablequant", {"nearest": "errors"})
    >>> found("nearest").__module__
    'speechbrain_stablequant.errors'
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}"
            )
        value = getattr(importlib.import_module(f"{package}.{home}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
