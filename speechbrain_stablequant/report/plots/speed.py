"""Speed of the float and the quantized pass."""

from collections.abc import Sequence
from typing import Optional

from matplotlib.figure import Figure

from speechbrain_stablequant.core.format import times_as_fast
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    label_names,
    styled,
)

__all__ = ["speed_figure"]


@styled()
def speed_figure(
    label: str, rows: Sequence[tuple[str, Optional[float], float]]
) -> Figure:
    """Draw the time of both passes by test set.

    Arguments
    ---------
    label : str
        What is measured, with its unit.
    rows : sequence of (str, float or None, float)
        Name of the test set, value of the float pass (where there was one)
        and of the quantized one.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    figure = Figure(
        figsize=(7.2, 0.85 + 0.55 * len(rows)), layout="constrained"
    )
    axes = figure.add_subplot()
    bare(axes)
    largest = max(value for _, *pair in rows for value in pair if value)
    for place, (_, before, after) in enumerate(rows):
        _draw_bar(axes, place - 0.2, before, "grey", "")
        faster = times_as_fast(before, after)
        note = f", {faster}" if faster else ""
        _draw_bar(axes, place + 0.2, after, "blue", note)
    names = [name or "test" for name, _, _ in rows]
    labels = [label_names([name], most=30)[0] for name in names]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, largest * 1.3)
    axes.set_xlabel(label)
    handles = [axes.barh(0, 0, color=COLORS[c]) for c in ("grey", "blue")]
    figure.legend(
        handles, ["float", "quantized"], loc="outside upper left", ncols=2,
        frameon=False, handlelength=1, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _draw_bar(axes, place: float, value, color: str, note: str) -> None:
    if value is None:
        return
    axes.barh(place, value, 0.36, color=COLORS[color], gid=f"bar-{color}")
    axes.annotate(
        f"{value:.4g}{note}", (value, place), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=8,
    )  # fmt: skip
