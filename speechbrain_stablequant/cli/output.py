"""What several commands print: parts of their tables, notes on the way."""

import sys

from speechbrain_stablequant.core.format import align, megabytes, printable

__all__ = [
    "coverage_lines",
    "environment_line",
    "metric_lines",
    "note",
    "size_lines",
]


def note(text: str) -> None:
    """Tell the user what is going on; on stderr, which is not the result."""
    print(printable(text), file=sys.stderr, flush=True)


def size_lines(files: list[dict]) -> list[str]:
    """Return a row for each checkpoint file."""
    rows = [("file", "bytes", "float", "")]
    for file in files:
        size, before = file["num_bytes"], file.get("float_num_bytes")
        ratio = f"{size / before:.1%}" if before else ""
        rows.append((file["name"], megabytes(size), megabytes(before), ratio))
    return align(rows, left=[0])


def metric_lines(tests: list[dict]) -> list[str]:
    """Return a row for each metric of each test set, and for its speed."""
    from speechbrain_stablequant.report.rows import speed_rows, test_rows

    rows = [("test set", "metric", "float", "quantized", "change [95 %]")]
    for test in tests:
        rows += [(test["name"], *row) for row in test_rows(test)]
        rows += [(test["name"], *row) for row in speed_rows(test)]
    return align(rows, [0, 1]) if len(rows) > 1 else ["no test set was scored"]


def coverage_lines(coverage: dict) -> list[str]:
    """Return how much of the weights is quantized, and why not the others."""
    found = []
    if coverage["fraction"] is not None:
        found.append(f"weights quantized: {coverage['fraction']:.1%} of bytes")
    for row in coverage["not_quantized"]:
        found.append(f"  not {row['name']}: {row['detail']}")
    return found or ["weights quantized: not known"]


def environment_line(environment: dict) -> list[str]:
    """Return hardware and versions in one line, if they are known."""
    if not environment:
        return []
    shown = {k: v for k, v in environment.items() if k != "features"}
    return ["on " + ", ".join(f"{k} {v}" for k, v in shown.items())]
