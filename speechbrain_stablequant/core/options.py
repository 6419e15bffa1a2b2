"""Checks of what a user may write for an option.

Each check takes the ``name`` of an option and the ``value`` that the user gave,
and raises an error with both and with what is allowed. ``error`` is its class:
`KnobError` for options, `PlanError` for the fields of a plan.
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from speechbrain_stablequant.errors import KnobError, nearest

__all__ = [
    "build_options",
    "check_choice",
    "check_flag",
    "check_list",
    "check_names",
    "check_number",
    "check_numbers",
    "check_whole_number",
    "field_names",
]

Options = TypeVar("Options")


def build_options(
    cls: type[Options], given: Any, owner: str, example: str
) -> Options:
    """Return options of a dataclass from the mapping that a user wrote.

    Arguments
    ---------
    cls : type
        The dataclass; it checks the values on construction.
    given : dict
        What the user wrote.
    owner : str
        What the options are for: ``training``.
    example : str
        A mapping that is allowed, for the error.

    Raises
    ------
    KnobError
        If it is not a mapping, or has unknown names.
    """
    if not isinstance(given, Mapping):
        raise KnobError(
            f"{owner} is {given!r}: it maps options to values, such as "
            f"{example}."
        )
    check_names(owner, given, field_names(cls))
    return cls(**given)


def field_names(cls: Any) -> list[str]:
    """Return the names of the fields of a dataclass."""
    return [field.name for field in dataclasses.fields(cls)]


def check_choice(
    name: str,
    value: Any,
    choices: Collection,
    error: type[Exception] = KnobError,
) -> None:
    """Refuse a value that is not one of the choices.

    Example
    -------
    >>> check_choice("observer", "mes", ["max", "mse"])
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: observer 'mes' is unknown. Did you mean 'mse'?
    """
    # A list, since a value that cannot be hashed is to be refused as well.
    if value not in list(choices):
        raise error(f"{name} '{value}' is unknown." + nearest(value, choices))


def check_names(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    error: type[Exception] = KnobError,
    what: str = "option",
) -> None:
    """Refuse names that their owner does not have.

    Arguments
    ---------
    owner : str
        Whose names they are: ``training``.
    given : iterable of str
        What the user wrote.
    known : collection of str
        What they could have written.
    what : str
        What the names stand for.

    Example
    -------
    >>> check_names("training", {"epoch": 3}, ["epochs", "lr"])
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: training has no option 'epoch'. Did you mean 'epochs'?
    """
    for key in given:
        if key not in known:
            raise error(f"{owner} has no {what} '{key}'." + nearest(key, known))


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    error: type[Exception] = KnobError,
) -> None:
    """Refuse what is not a number from ``low`` to ``high``.

    Example
    -------
    >>> check_number("subset", 2, 0, 1)
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: subset is 2: use 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error(f"{name} is {value!r}: a number is needed.")
    if not low <= value <= high:  # so that nan is refused
        span = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise error(f"{name} is {value}: use {span}.")


def check_numbers(
    owner: Any, limits: Iterable[tuple[str, float, float]], prefix: str = ""
) -> None:
    """Check the numbers of a settings object.

    Arguments
    ---------
    owner : object
        Whose attributes they are; None is allowed where it is the default.
    limits : iterable of (str, float, float)
        Name, smallest and largest value of each.
    prefix : str
        What errors put before a name: ``training: ``.

    Raises
    ------
    KnobError
        If one is out of range.
    """
    for name, low, high in limits:
        value = getattr(owner, name)
        if value is not None or getattr(type(owner), name) is not None:
            check_number(prefix + name, value, low, high)


def check_whole_number(
    name: str,
    value: Any,
    low: int,
    high: float = math.inf,
    error: type[Exception] = KnobError,
) -> None:
    """Refuse what is not a whole number from ``low`` to ``high``.

    Example
    -------
    >>> check_whole_number("epochs", 1.5, 1)
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: epochs is 1.5: a whole number is needed.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{name} is {value!r}: a whole number is needed.")
    check_number(name, value, low, high, error)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Example
    -------
    >>> check_flag("symmetric", "no")
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: symmetric is 'no': use True or False.
    """
    if not isinstance(value, bool):
        raise KnobError(f"{name} is {value!r}: use True or False.")


def check_list(name: str, value: Any, example: str) -> None:
    """Refuse a single value, or a text, where a list is needed.

    ``example`` is a list that is allowed, for the error.

    Example
    -------
    >>> check_list("stages", 4, "[4, 2]")
    Traceback (most recent call last):
    speechbrain_stablequant.errors.KnobError: stages is 4: a list is needed, such as [4, 2].
    """
    if isinstance(value, (str, bytes, dict)) or not isinstance(
        value, Collection
    ):
        raise KnobError(
            f"{name} is {value!r}: a list is needed, such as {example}."
        )
