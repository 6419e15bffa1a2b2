"""Small helpers for tables in plain text."""

from collections.abc import Sequence

__all__ = ["align", "megabytes"]


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
