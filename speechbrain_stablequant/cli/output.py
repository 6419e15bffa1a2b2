"""What commands print: JSON, and notes on the way."""

import json
import math
import sys
from typing import Any

__all__ = ["note", "printable", "to_json"]


def to_json(result: Any) -> str:
    """Return strict JSON: what is not finite becomes null, a path its text.

    Example
    -------
    >>> print(to_json({"WER": float("nan")}))
    {
     "WER": null
    }
    """
    return json.dumps(_finite(result), indent=1, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def printable(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey: names in files are not ours.

    Arguments
    ---------
    text : str
        What is to be shown.
    kept : str
        Characters that stay as they are, as line breaks of our own.

    Example
    -------
    >>> print(printable("\\x1b[31mred"))
    \\x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in kept
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def note(text: str) -> None:
    """Tell the user what is going on, beside the result: on stderr."""
    print(printable(text), file=sys.stderr, flush=True)
