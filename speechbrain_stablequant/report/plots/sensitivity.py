"""Sensitivity of layers: which one bears which width."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    label_names,
    power_label,
    save_figure,
    styled,
)

__all__ = ["plot_sensitivity", "sensitivity_figure"]

_MOST_LAYERS = 90  # rows that a page bears


def plot_sensitivity(
    search: dict,
    chosen: Mapping[str, str],
    layers: Sequence[dict],
    stem: Path,
) -> list[Path]:
    """Draw `sensitivity_figure` into a PNG and an SVG.

    Arguments
    ---------
    search : dict
        The report of the search.
    chosen : dict
        Width of each layer in the plan.
    layers : sequence of dict
        ``layers`` of the report.
    stem : Path
        Where to, without an ending.

    Returns
    -------
    list of Path
        Both files.
    """
    return save_figure(sensitivity_figure(search, chosen, layers), stem)


@styled()
def sensitivity_figure(
    search: dict, chosen: Mapping[str, str], layers: Sequence[dict]
) -> Figure:
    """Draw what each width of each layer does to the output, alone.

    A map of layers and widths. A cell that the plan has is framed; a number
    in it is a change of the metric that is not by chance. Beside it the bytes
    of each layer's weights and scales, before and after.

    Arguments
    ---------
    search : dict
        The report of the search.
    chosen : dict
        Width of each layer in the plan.
    layers : sequence of dict
        ``layers`` of the report.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    cells: dict[str, dict[str, dict]] = {}
    for row in search["sensitivity"]:
        cells.setdefault(row["layer"], {})[row["bits"]] = row
    names = _most_sensitive(cells)
    widths = {bits for name in names for bits in cells[name]}
    widths |= {chosen[name] for name in names}
    ordered = sorted(widths, key=parse_bits)
    height = 1.5 + 0.19 * max(len(names), 4)
    figure = Figure(figsize=(8.4, height), layout="constrained")
    ratios = [max(len(ordered), 1) * 0.62, 2.2]
    heat, bars = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": ratios}
    )
    shown = "layers"
    if len(names) < len(cells):
        shown = f"most sensitive of {len(cells)}"
    # Over both parts: with two widths the first is narrower than the words.
    figure.suptitle(
        f"Layers quantized alone; {len(names)} {shown}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    mesh = _draw_cells(heat, cells, names, ordered)
    _draw_changes(heat, mesh, cells, names, ordered)
    _draw_scale(figure, heat, mesh, search["metric"])
    _draw_chosen(heat, chosen, names, ordered)
    _draw_sizes(bars, layers, names)
    return figure


def _most_sensitive(cells) -> list[str]:
    """Return the layers to draw, in the order of the model."""

    def badness(name: str) -> float:
        return max(_finite(row["distance"]) for row in cells[name].values())

    if len(cells) <= _MOST_LAYERS:
        return list(cells)
    most = set(sorted(cells, key=badness, reverse=True)[:_MOST_LAYERS])
    return [name for name in cells if name in most]


def _finite(value: Optional[float]) -> float:
    return value if value is not None and math.isfinite(value) else 0.0


def _draw_cells(axes, cells, names, widths):
    """Draw the distances, on a scale of powers of ten, and return them."""
    distances = np.zeros((len(names), len(widths)))
    for i, name in enumerate(names):
        for j, bits in enumerate(widths):
            row = cells[name].get(bits)
            if row is not None:
                distances[i, j] = _finite(row["distance"])
    masked = np.ma.masked_less_equal(distances, 0)
    low, high = 1e-7, 1.0
    if masked.count():
        low, high = float(masked.min()), float(masked.max())
    mesh = axes.pcolormesh(
        masked,
        cmap="YlOrRd",
        norm=LogNorm(max(low, high * 1e-7), max(high, low * 1.01)),
        edgecolors=COLORS["paper"],
        linewidth=0.8,
        gid="distances",
    )
    axes.set_xlim(0, max(len(widths), 1))
    axes.set_ylim(len(names), 0)
    axes.set_xticks(np.arange(len(widths)) + 0.5, widths)
    axes.set_yticks(np.arange(len(names)) + 0.5, label_names(names), fontsize=7)
    axes.xaxis.tick_top()
    bare(axes)
    return mesh


def _draw_changes(axes, mesh, cells, names, widths) -> None:
    """Write down the changes of the metric that are not by chance."""
    for i, name in enumerate(names):
        for j, bits in enumerate(widths):
            row = cells[name].get(bits)
            if row is None or row["low"] is None or row["high"] is None:
                continue
            if row["low"] > 0 or row["high"] < 0:
                distance = max(_finite(row["distance"]), mesh.norm.vmin)
                is_dark = mesh.norm(distance) > 0.65
                axes.text(
                    j + 0.5,
                    i + 0.53,
                    f"{row['change']:+.2f}",
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color=COLORS["on_dark" if is_dark else "on_light"],
                    gid="change",
                )


def _draw_scale(figure, axes, mesh, metric: Optional[str]) -> None:
    bar = figure.colorbar(
        mesh, ax=axes, location="bottom", aspect=40, pad=0.01, shrink=0.9
    )
    bar.ax.xaxis.set_major_formatter(FuncFormatter(power_label))
    label = "distance of the output (squared, relative)"
    if metric is not None:
        label += f"\nnumber: change of {metric}, if its interval excludes 0"
    bar.set_label(label)
    bar.outline.set_visible(False)


def _draw_chosen(axes, chosen, names, widths) -> None:
    for i, name in enumerate(names):
        axes.add_patch(
            Rectangle(
                (widths.index(chosen[name]) + 0.05, i + 0.08),
                0.9,
                0.84,
                fill=False,
                edgecolor=COLORS["frame"],
                linewidth=1.4,
                gid="plan",
            )
        )


def _draw_sizes(axes, layers, names) -> None:
    """Draw the bytes of each layer, in float and as planned."""
    before, after = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for row in layers:
        if row["layer"] in before:
            before[row["layer"]] += row["float_num_bytes"] / 1e6
            after[row["layer"]] += row["num_bytes"] / 1e6
    before, after = list(before.values()), list(after.values())
    places = np.arange(len(names)) + 0.5
    axes.barh(places, before, 0.72, color=COLORS["light"], label="float")
    axes.barh(places, after, 0.72, color=COLORS["blue"], label="plan (framed)")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(length=0, labelleft=False)
    axes.xaxis.tick_top()
    axes.set_title("MB, weights and scales", fontsize=9)
    axes.spines["right"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0))
