"""Rows of the tables, for the terminal and the page alike."""

from collections.abc import Iterator
from typing import Optional

from speechbrain_stablequant.core.format import (
    cost_line,
    decimals,
    interval,
    megabytes,
    number,
    times_as_fast,
)

__all__ = [
    "cut_text",
    "search_lines",
    "size_row",
    "speed_of",
    "speed_rows",
    "test_rows",
    "weights_line",
]

Row = tuple[str, str, str, str]


def test_rows(test: dict) -> Iterator[Row]:
    """Yield the metrics of a test set: label, float, quantized, change.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.
    """
    for name, row in test["metrics"].items():
        values = [row["float"], row["quantized"]]
        digits = decimals(*values)
        before, after = (number(value, digits) for value in values)
        yield f"{test['name']} {name}", before, after, interval(row, digits)


test_rows.__test__ = False  # not a test, whatever pytest makes of the name


def speed_of(
    test: dict,
) -> Optional[tuple[str, Optional[float], Optional[float]]]:
    """Return what the speed of a test pass is measured in, and its values.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.

    Returns
    -------
    tuple or None
        Label, value of the float and of the quantized pass; None where no
        runtime was measured.
    """
    before = test.get("float_speed") or {}
    after = test.get("quantized_speed") or {}
    for key, label in (
        ("real_time_factor", "real-time factor"),
        ("seconds", "seconds in the model"),
    ):
        if after.get(key) is not None:
            return label, before.get(key), after[key]
    return None


def speed_rows(test: dict) -> Iterator[Row]:
    """Yield real-time factor and memory, where a runtime was measured.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.
    """
    speed = speed_of(test)
    if speed is None:
        return
    label, old, new = speed
    yield (
        f"{test['name']} {label}",
        number(old, 4),
        number(new, 4),
        times_as_fast(old, new),
    )
    new = test["quantized_speed"].get("peak_num_bytes")
    if new is not None:
        old = (test["float_speed"] or {}).get("peak_num_bytes")
        yield (
            f"{test['name']} peak memory",
            "-" if old is None else megabytes(old),
            megabytes(new),
            "process, float model included",
        )


def size_row(file: dict) -> Row:
    """Return the sizes of a checkpoint on disk.

    Arguments
    ---------
    file : dict
        One of the ``files`` of a report.
    """
    ratio = file["num_bytes"] / file["float_num_bytes"]
    return (
        f"{file['name']}.ckpt",
        megabytes(file["float_num_bytes"]),
        megabytes(file["num_bytes"]),
        f"{ratio:.1%} of the bytes",
    )


def weights_line(weights: dict) -> str:
    """Say which weights were quantized, where the recipe does not choose."""
    if weights["checkpoint"] is None:
        return "quantized: the weights that fit left"
    line = f"quantized: {weights['checkpoint']}"
    if weights["key"] is not None:
        line += f", {weights['choice']} {weights['key']} ({weights['value']:g})"
    return line


def cut_text(percentile: float) -> str:
    """Say at which percentile activations are cut.

    Example
    -------
    >>> cut_text(99.9), cut_text(100.0)
    ('cut at 99.9 %', 'not cut')
    """
    return "not cut" if percentile >= 100 else f"cut at {percentile:g} %"


def search_lines(search: dict) -> list[str]:
    """Say which units were flagged, what was cut and what it cost."""
    if "flagged" not in search:
        return []
    if not search["flagged"]:
        lines = ["flagged units: none"]
    else:
        lines = ["flagged units:"]
    for unit in search["flagged"]:
        rise = search["sensitivity"][unit]["change"]
        rise = "not a number" if rise is None else f"{rise:+.2f}"
        cut = cut_text(search["percentiles"][unit]["chosen"])
        lines.append(f"  {unit}: {rise} with max, {cut}")
    lines.append(cost_line(search["cost"]))
    return lines
