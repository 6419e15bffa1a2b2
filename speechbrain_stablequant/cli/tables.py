"""Tables of the commands, in plain text."""

from collections.abc import Sequence
from typing import Optional

from speechbrain_stablequant.cli.output import printable

__all__ = [
    "environment_line",
    "letter",
    "megabytes_or_dash",
    "metric_lines",
    "size_lines",
    "table",
]


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Align columns: the first ``left`` to the left, others to the right.

    Example
    -------
    >>> table([("a", "n"), ("bc", "10")])
    ['a    n', 'bc  10']
    """
    # A name with a line break must not look like another row
    rows = [[printable(cell) for cell in row] for row in rows]
    count = len(rows[0])
    wide = [max(len(row[i]) for row in rows) for i in range(count)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, wide))
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


def megabytes_or_dash(num_bytes: Optional[int]) -> str:
    """Return a size in MB; a dash where it is not known.

    Example
    -------
    >>> megabytes_or_dash(None), megabytes_or_dash(1_500_000)
    ('-', '1.500 MB')
    """
    return "-" if num_bytes is None else f"{num_bytes / 1e6:.3f} MB"


def size_lines(files: list[dict]) -> list[str]:
    """Return a row for each checkpoint file."""
    rows = [("file", "bytes", "float", "")]
    for file in files:
        before = file.get("float_num_bytes")
        ratio = f"{file['num_bytes'] / before:.1%}" if before else ""
        rows.append(
            (
                file["name"],
                megabytes_or_dash(file["num_bytes"]),
                megabytes_or_dash(before),
                ratio,
            )
        )
    return table(rows)


def metric_lines(tests: list[dict]) -> list[str]:
    """Return a row for each metric of each test set."""
    from speechbrain_stablequant.core.format import decimals, interval, number
    from speechbrain_stablequant.report.rows import speed_of

    rows = [("test set", "metric", "float", "quantized", "change [95 %]")]
    for test in tests:
        for name, row in test["metrics"].items():
            values = row.get("float"), row.get("quantized")
            digits = decimals(*values)
            before, after = (number(value, digits) for value in values)
            change = interval(row, digits) if "low" in row else ""
            rows.append((test["name"], name, before, after, change))
        speed = speed_of(test)
        if speed is not None:
            rows.append((test["name"], *_speed_cells(*speed)))
    return table(rows, left=2) if len(rows) > 1 else ["no test set was scored"]


def _speed_cells(label: str, old: Optional[float], new: float):
    """Return the measure, its values in both passes, and times as fast."""
    from speechbrain_stablequant.core.format import number, times_as_fast

    return label, number(old, 4), number(new, 4), times_as_fast(old, new)


def environment_line(environment: dict) -> list[str]:
    """Return hardware and versions in one line, if they are known."""
    if not environment:
        return []
    shown = {k: v for k, v in environment.items() if k != "features"}
    return ["on " + ", ".join(f"{k} {v}" for k, v in shown.items())]
