"""What commands print: JSON, and notes on the way."""

import json
import math
import sys
from typing import Any

__all__ = ["note", "to_json"]


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


def note(text: str) -> None:
    """Tell the user what is going on, beside the result: on stderr."""
    print(text, file=sys.stderr, flush=True)
