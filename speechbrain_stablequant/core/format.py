"""Small helpers for tables in plain text."""

import math
from collections.abc import Sequence
from typing import Any, Optional

__all__ = [
    "align",
    "cost_line",
    "decimals",
    "finite",
    "interval",
    "is_number",
    "megabytes",
    "number",
    "times_as_fast",
]

_LARGE = 1e6  # beyond, a figure has a power of ten


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: the first and last to the left, others to the right.

    Example
    -------
    >>> align([("", "float", "x"), ("WER", "6.1", "y")])
    ['     float  x', 'WER    6.1  y']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def megabytes(num_bytes: int) -> str:
    """Return a size in units of 10^6 bytes.

    Example
    -------
    >>> megabytes(1_234_567)
    '1.235 MB'
    """
    return f"{num_bytes / 1e6:.3f} MB"


def number(
    value: Optional[float], decimals: int = 2, signed: bool = False
) -> str:
    """Return a figure of a table, or a dash where there is none.

    Example
    -------
    >>> number(3.2149), number(0.5, signed=True), number(1e300), number(None)
    ('3.21', '+0.50', '1e+300', '-')
    >>> number(float("nan"))
    'not a number'
    """
    if value is None:
        return "-"
    if value != value:
        return "not a number"
    sign = "+" if signed else ""
    if abs(value) >= _LARGE:
        return f"{value:{sign}g}"
    return f"{value:{sign}.{decimals}f}"


def times_as_fast(before: Optional[float], after: Optional[float]) -> str:
    """Compare two durations; empty where one is not known.

    Example
    -------
    >>> times_as_fast(1.5, 0.5), times_as_fast(0.5, 1.0)
    ('3.00 times as fast', '0.50 times as fast')
    """
    if not before or not after:
        return ""
    return f"{before / after:.2f} times as fast"


def decimals(*values: Optional[float]) -> int:
    """Return how many decimals a metric needs: detection costs are small.

    Example
    -------
    >>> decimals(3.21, 0.0), decimals(0.24, 0.25), decimals(0.0081, 0.0079)
    (2, 3, 4)
    """
    largest = max((abs(v) for v in values if v is not None), default=0.0)
    if 0 < largest < 0.1:
        return 4
    return 3 if 0 < largest < 1 else 2


def interval(row: dict, digits: int = 2) -> str:
    """Return the change of a metric with its confidence interval.

    Arguments
    ---------
    row : dict
        With ``change``, ``low`` and ``high``, any of them None.
    digits : int
        Decimals.

    Returns
    -------
    str
        Empty when the change is not known.

    Example
    -------
    >>> interval({"change": 0.041, "low": -0.1, "high": 0.2})
    '+0.04 [-0.10, +0.20]'
    """
    if not is_number(row.get("change")):
        return ""
    text = number(row["change"], digits, signed=True)
    if row["low"] is None:
        return text
    low, high = (number(row[k], digits, signed=True) for k in ("low", "high"))
    return f"{text} [{low}, {high}]"


def cost_line(cost: dict) -> str:
    """Say what a search has cost.

    Example
    -------
    >>> cost_line(
    ...     {
    ...         "evaluations": 40,
    ...         "forward_passes": 4.0,
    ...         "computed_passes": 2.5,
    ...         "resumed": 0,
    ...     }
    ... )
    'search: 40 evaluations, 4.0 passes over the search set, of which 2.5 were computed'
    """
    if cost["resumed"] and not cost["evaluations"]:
        count = cost["resumed"]
        return f"search: all {count} evaluations taken from the journal"
    line = (
        f"search: {cost['evaluations']} evaluations, "
        f"{cost['forward_passes']:.1f} passes over the search set, of which "
        f"{cost['computed_passes']:.1f} were computed"
    )
    if cost.get("seconds") is not None:
        line += f", in {cost['seconds']:.0f} s"
    if cost["resumed"]:
        line += f"; {cost['resumed']} resumed"
    return line


def finite(value: Any) -> Any:
    """Replace nan and infinity, which JSON does not have, by None.

    Example
    -------
    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_number(value: Optional[float]) -> bool:
    """Whether a value is known and finite.

    Example
    -------
    >>> is_number(0.5), is_number(None), is_number(float("nan"))
    (True, False, False)
    """
    return value is not None and math.isfinite(value)
