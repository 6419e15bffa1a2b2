"""Numbers and tables as text, and plain data as strict JSON.

One way to write a figure, so that the terminal, the page, the model card and
the benchmarks show the same value in the same way.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

__all__ = [
    "align",
    "decimals",
    "finite",
    "interval",
    "is_number",
    "letter",
    "megabytes",
    "number",
    "printable",
    "times_as_fast",
    "to_json",
]

_LARGE = 1e6  # from here on, numbers are written with a power of ten


# -- numbers -----------------------------------------------------------------


def is_number(value: Optional[float]) -> bool:
    """Whether a value is known and finite.

    Example
    -------
    >>> is_number(0.5), is_number(None), is_number(float("nan"))
    (True, False, False)
    """
    return value is not None and math.isfinite(value)


def number(
    value: Optional[float], decimals: int = 2, signed: bool = False
) -> str:
    """Return a number for a table, or a dash where there is none.

    Example
    -------
    >>> number(3.2149), number(0.5, signed=True), number(1e300), number(None)
    ('3.21', '+0.50', '1e+300', '-')
    >>> number(float("nan"))
    'not a number'
    """
    if value is None:
        return "-"
    if math.isnan(value):
        return "not a number"
    sign = "+" if signed else ""
    if abs(value) >= _LARGE:
        return f"{value:{sign}g}"
    return f"{value:{sign}.{decimals}f}"


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


def interval(row: Mapping[str, Any], digits: int = 2) -> str:
    """Return the change of a metric with its confidence interval.

    Arguments
    ---------
    row : dict
        With ``change``, ``low`` and ``high``, any of them missing or None.
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
    ends = row.get("low"), row.get("high")
    if None in ends:
        return text
    low, high = (number(end, digits, signed=True) for end in ends)
    return f"{text} [{low}, {high}]"


def megabytes(num_bytes: Optional[int]) -> str:
    """Return a size in units of 10^6 bytes, or a dash where it is not known.

    Example
    -------
    >>> megabytes(1_234_567), megabytes(None)
    ('1.235 MB', '-')
    """
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.3f} MB"


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


# -- tables ------------------------------------------------------------------


def align(
    rows: Sequence[Sequence[str]], left: Collection[int] = (0, -1)
) -> list[str]:
    """Align the columns of a table in plain text.

    Arguments
    ---------
    rows : sequence of sequences of str
        Cells; the first row is usually the heading.
    left : collection of int
        Columns that are aligned to the left, negative ones counted from the
        end; the others are aligned to the right.

    Returns
    -------
    list of str
        One line for each row.

    Example
    -------
    >>> align([("", "float", "x"), ("WER", "6.1", "y")])
    ['     float  x', 'WER    6.1  y']
    >>> align([("a", "n"), ("bc", "10")], left=[0])
    ['a    n', 'bc  10']
    """
    # A name with a line break must not look like another row.
    rows = [[printable(cell) for cell in row] for row in rows]
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count)]
    to_left = {i % count for i in left}
    return [
        "  ".join(
            cell.ljust(width) if i in to_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def letter(index: int) -> str:
    """Return the heading of a column, as spreadsheets count.

    Example
    -------
    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'AA')
    """
    head, last = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("A") + last)


def printable(text: str, kept: str = "") -> str:
    """Escape control characters: names in files are untrusted input.

    Arguments
    ---------
    text : str
        What is to be shown on a terminal.
    kept : str
        Characters that stay as they are, such as our own line breaks.

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


# -- JSON --------------------------------------------------------------------


def to_json(value: Any, **layout) -> str:
    """Return strict JSON: what is not finite becomes null.

    Arguments
    ---------
    value : object
        Plain data.
    **layout
        Of `json.dumps`, such as ``indent``.

    Example
    -------
    >>> to_json({"WER": float("nan")})
    '{"WER": null}'
    """
    return json.dumps(finite(value), allow_nan=False, **layout)


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
