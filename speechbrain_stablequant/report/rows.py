"""What a report says, as rows and lines of text.

The same rows stand in the table of the terminal, in ``stablequant inspect`` and
on the page.
"""

from collections.abc import Iterator
from typing import Optional

from speechbrain_stablequant.core.format import (
    decimals,
    interval,
    megabytes,
    number,
    times_as_fast,
)

__all__ = [
    "cost_line",
    "cut_text",
    "search_lines",
    "size_row",
    "speed_of",
    "speed_rows",
    "test_rows",
    "weights_line",
]

Row = tuple[str, str, str, str]


# -- tests and sizes ---------------------------------------------------------


def test_rows(test: dict) -> Iterator[Row]:
    """Yield the metrics of a test set: name, float, quantized, change.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.
    """
    for name, row in test["metrics"].items():
        values = row.get("float"), row.get("quantized")
        digits = decimals(*values)
        before, after = (number(value, digits) for value in values)
        yield name, before, after, interval(row, digits)


test_rows.__test__ = False  # pytest takes the name for a test's


def speed_of(
    test: dict,
) -> Optional[tuple[str, Optional[float], Optional[float]]]:
    """Return the speed of a test pass.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.

    Returns
    -------
    tuple or None
        What was measured, its value in the float and in the quantized pass;
        None where the quantized pass ran on no runtime.
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
    """Yield speed and memory, where the quantized pass ran on a runtime.

    Arguments
    ---------
    test : dict
        One of the ``tests`` of a report.
    """
    speed = speed_of(test)
    if speed is None:
        return
    label, old, new = speed
    yield label, number(old, 4), number(new, 4), times_as_fast(old, new)
    new = test["quantized_speed"].get("peak_num_bytes")
    if new is not None:
        old = (test.get("float_speed") or {}).get("peak_num_bytes")
        yield (
            "peak memory",
            megabytes(old),
            megabytes(new),
            "process, float model included",
        )


def size_row(file: dict) -> Row:
    """Return the sizes of a checkpoint on disk: name, float, quantized, ratio.

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


# -- weights and search ------------------------------------------------------


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
    """Say which units were flagged, how they were cut and what it cost."""
    if "flagged" not in search:
        return []
    lines = ["flagged units:" if search["flagged"] else "flagged units: none"]
    for unit in search["flagged"]:
        rise = search["sensitivity"][unit]["change"]
        rise = "not a number" if rise is None else f"{rise:+.2f}"
        cut = cut_text(search["percentiles"][unit]["chosen"])
        lines.append(f"  {unit}: {rise} with max, {cut}")
    return [*lines, cost_line(search["cost"])]


def cost_line(cost: dict) -> str:
    """Say how much computing a search took.

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
