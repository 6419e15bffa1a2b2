"""Bars of float against quantized: bytes by part, and time by test set."""

from collections.abc import Mapping, Sequence
from typing import Optional

from matplotlib.figure import Figure

from speechbrain_stablequant.core.format import times_as_fast
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    chart,
    color_legend,
    label_names,
    styled,
    write_beside,
)

__all__ = ["sizes_figure", "speed_figure"]

# Part, its colour, and the colour of text on it
_PARTS = (
    ("integers", "blue", "on_accent"),
    ("scales", "yellow", "on_light"),
    ("weights in float", "grey", "on_light"),
    ("biases, norms, gains", "purple", "on_accent"),
    ("buffers and header", "sky", "on_light"),
)


@styled()
def sizes_figure(sizes: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw bytes by part, in float and quantized.

    Arguments
    ---------
    sizes : dict
        For ``float`` and ``quantized``: bytes by part (``integers``,
        ``scales``, ``weights in float``, ``biases, norms, gains``, and
        ``buffers and header`` where these are known).

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    figure, axes = chart(7.2, 1.75)
    bare(axes)
    largest = max(sum(parts.values()) for parts in sizes.values()) or 1
    for place, parts in enumerate(sizes.values()):
        _draw_parts(axes, place, parts, largest)
    axes.set_yticks(range(len(sizes)), list(sizes))
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xlim(0, largest / 1e6 * 1.2)
    has_rest = all("buffers and header" in parts for parts in sizes.values())
    axes.set_xlabel("MB, files" if has_rest else "MB, tensors of all modules")
    used = [p for p in _PARTS if any(s.get(p[0]) for s in sizes.values())]
    color_legend(figure, {name: color for name, color, _ in used})
    return figure


def _draw_parts(axes, place: int, parts, largest: int) -> None:
    start = 0.0
    for name, color, ink in _PARTS:
        value = parts.get(name, 0)
        if not value:
            continue
        axes.barh(
            place, value / 1e6, 0.62, left=start / 1e6, color=COLORS[color],
            gid=name.split()[0].strip(","),
        )  # fmt: skip
        if value > 0.1 * largest:
            axes.text(
                (start + value / 2) / 1e6, place, f"{value / 1e6:.3g}",
                ha="center", va="center", fontsize=8, color=COLORS[ink],
            )  # fmt: skip
        start += value
    write_beside(axes, f"{start / 1e6:.3f} MB", start / 1e6, place)


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
    figure, axes = chart(7.2, 0.85 + 0.55 * len(rows))
    bare(axes)
    largest = max(value for _, *pair in rows for value in pair if value)
    for place, (_, before, after) in enumerate(rows):
        _draw_time(axes, place - 0.2, before, "grey", "")
        faster = times_as_fast(before, after)
        note = f", {faster}" if faster else ""
        _draw_time(axes, place + 0.2, after, "blue", note)
    names = [name or "test" for name, _, _ in rows]
    labels = [label_names([name], most=30)[0] for name in names]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, largest * 1.3)
    axes.set_xlabel(label)
    color_legend(figure, {"float": "grey", "quantized": "blue"})
    return figure


def _draw_time(axes, place: float, value, color: str, note: str) -> None:
    if value is None:
        return
    axes.barh(place, value, 0.36, color=COLORS[color], gid=f"bar-{color}")
    write_beside(axes, f"{value:.4g}{note}", value, place)
