"""Tables of the commands, in plain text."""

from collections.abc import Sequence
from typing import Optional

__all__ = [
    "environment_line",
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
    count = len(rows[0])
    wide = [max(len(row[i]) for row in rows) for i in range(count)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, wide))
        ).rstrip()
        for row in rows
    ]


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
    from speechbrain_stablequant.report.tables import (
        decimals,
        interval,
        number,
    )

    rows = [("test set", "metric", "float", "quantized", "change [95 %]")]
    for test in tests:
        for name, row in test["metrics"].items():
            values = row.get("float"), row.get("quantized")
            digits = decimals(*values)
            before, after = (number(value, digits) for value in values)
            change = interval(row, digits) if "low" in row else ""
            rows.append((test["name"], name, before, after, change))
        speed = test.get("quantized_speed") or {}
        if speed.get("real_time_factor") is not None:
            rows.append((test["name"], "real-time factor", *_factors(test)))
    return table(rows, left=2) if len(rows) > 1 else ["no test set was scored"]


def _factors(test: dict) -> tuple[str, str, str]:
    """Return real-time factors of both passes, and times as fast."""
    new = test["quantized_speed"]["real_time_factor"]
    old = (test.get("float_speed") or {}).get("real_time_factor")
    if not old:
        return "-", f"{new:.4f}", ""
    return f"{old:.4f}", f"{new:.4f}", f"{old / new:.2f} times as fast"


def environment_line(environment: dict) -> list[str]:
    """Return hardware and versions in one line, if they are known."""
    if not environment:
        return []
    shown = {k: v for k, v in environment.items() if k != "features"}
    return ["on " + ", ".join(f"{k} {v}" for k, v in shown.items())]
