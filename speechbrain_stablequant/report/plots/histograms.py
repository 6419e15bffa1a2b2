"""Histograms of activations, with the ranges that were chosen."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    chart,
    label_names,
    styled,
    write_beside,
)
from speechbrain_stablequant.report.rows import cut_text

__all__ = ["histograms_figure"]

_HEIGHT = 0.86  # of a histogram, in rows


@styled()
def histograms_figure(rows: Sequence[dict], title: str = "") -> Figure:
    """Draw one histogram below the other, each scaled to its largest value.

    Counts are on a logarithmic scale, so that tails can be seen. What lies
    outside of the chosen range is red.

    Arguments
    ---------
    rows : sequence of dict
        ``layer``, ``input``, ``low``, ``bin_width`` and ``counts`` of a
        histogram; ``range``, ``percentile`` and ``clipped`` of the plan;
        ``same``, if any, the number of further layers with the same input.
    title : str
        Title of the figure.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    # One axes for all: laying out an axes for each would take seconds.
    figure, axes = chart(7.2, 0.75 + 0.31 * max(len(rows), 2))
    bare(axes)
    axes.set_xlim(-1.02, 1.02)
    axes.set_ylim(len(rows) + 0.05, -0.05)
    axes.set_yticks(np.arange(len(rows)) + 0.62, _labels(rows), fontsize=7)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["-max", "-½", "0", "½", "max"])
    axes.axvline(0, color=COLORS["light"], linewidth=0.6, zorder=0)
    axes.hlines(
        np.arange(1, len(rows) + 1), -1, 1, color=COLORS["light"], linewidth=0.6
    )
    _draw_counts(axes, rows)
    _draw_ranges(axes, rows)
    for place, row in enumerate(rows):
        write_beside(
            axes, _note(row), 1.02, place + 0.62, fontsize=7,
            annotation_clip=False,
            color=COLORS["red" if row["percentile"] < 100 else "ink"],
        )  # fmt: skip
    axes.set_title(title)
    return figure


def _labels(rows) -> list[str]:
    slots = Counter(row["layer"] for row in rows)
    names = label_names([row["layer"] for row in rows], most=46)
    return [
        name
        + (f", {row['input']}" if slots[row["layer"]] > 1 else "")
        + (f" +{row['same']}" if row.get("same") else "")
        for name, row in zip(names, rows)
    ]


def _note(row: dict) -> str:
    low, high = row["range"]
    text = f"{low:.3g} to {high:.3g}"
    if row["percentile"] < 100:
        text += f", {cut_text(row['percentile'])}"
    return text


def _edges(row: dict) -> np.ndarray:
    """Return the ends of the bins, in units of the activation."""
    return row["low"] + row["bin_width"] * np.arange(len(row["counts"]) + 1)


def _largest(row: dict) -> float:
    """Return the value at the end of the axis."""
    edges = _edges(row)
    return float(max(abs(edges[0]), abs(edges[-1]), 1e-30))


def _draw_counts(axes, rows) -> None:
    """Draw the counts inside and outside of the ranges."""
    inside, outside = [], []
    for place, row in enumerate(rows):
        counts = np.asarray(row["counts"], dtype=float)
        if not counts.size:
            continue
        heights = np.log1p(counts) / np.log1p(counts.max())
        edges = _edges(row)
        middle = (edges[:-1] + edges[1:]) / 2
        low, high = row["range"]
        kept = (middle >= low) & (middle <= high)
        edges = edges / _largest(row)
        bottom = place + 1
        for part, found in ((kept, inside), (~kept, outside)):
            if part.any():
                found.append(_steps(edges, heights * part, bottom))
    for found, color, gid in (
        (inside, "sky", "kept"),
        (outside, "red", "clipped"),
    ):
        axes.add_collection(
            PolyCollection(
                found, facecolors=COLORS[color], linewidths=0, gid=gid
            )
        )


def _steps(edges, heights, bottom: float) -> np.ndarray:
    """Return the outline of bars of some heights above a line."""
    x = np.repeat(edges, 2)
    y = bottom - _HEIGHT * np.concatenate([[0], np.repeat(heights, 2), [0]])
    return np.column_stack([x, y])


def _draw_ranges(axes, rows) -> None:
    """Mark the ends of the ranges that lie within the picture."""
    lines, colors = [], []
    for place, row in enumerate(rows):
        for end in row["range"]:
            x = end / _largest(row)
            if end and abs(x) <= 1.0:
                lines.append([(x, place + 0.12), (x, place + 1)])
                cut = row["percentile"] < 100
                colors.append(COLORS["red" if cut else "ink"])
    axes.add_collection(
        LineCollection(lines, colors=colors, linewidths=1.1, gid="range")
    )
