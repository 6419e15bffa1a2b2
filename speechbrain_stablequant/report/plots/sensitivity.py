"""Sensitivity: what quantizing one layer, or one search unit, alone costs.

`sensitivity_figure` is for mixed precision, by layer and bit widths;
`units_figure` for StableQuant, by search unit.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Callable, Optional

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.core.format import is_number
from speechbrain_stablequant.report.mixed_precision import (
    sensitivity_by_layer,
)
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    chart,
    label_names,
    map_and_bytes,
    power_label,
    styled,
    write_beside,
)
from speechbrain_stablequant.report.rows import cut_text

__all__ = ["sensitivity_figure", "units_figure"]

_MOST_LAYERS, _MOST_UNITS = 90, 60  # more rows do not fit on a page


# -- layers ------------------------------------------------------------------


@styled()
def sensitivity_figure(
    search: dict, chosen: Mapping[str, str], layers: Sequence[dict]
) -> Figure:
    """Draw what quantizing each layer alone, to each bit width, does.

    A map of layers and bit widths. The plan's cells are framed; a number in a
    cell is a change of the metric whose interval excludes 0. Beside it the
    bytes of each layer's weights and scales, before and after.

    Arguments
    ---------
    search : dict
        The report of the search.
    chosen : dict
        Bit widths of each layer in the plan.
    layers : sequence of dict
        ``layers`` of the report.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    cells = sensitivity_by_layer(search)
    names = _most_sensitive(cells)
    widths = {bits for name in names for bits in cells[name]}
    widths |= {chosen[name] for name in names}
    ordered = sorted(widths, key=parse_bits)
    own = [[r for r in layers if r["layer"] == name] for name in names]
    size = 8.4, 1.5 + 0.19 * max(len(names), 4)
    figure, heat, bars = map_and_bytes(
        names, ordered, own, "plan (framed)", size
    )
    shown = "layers"
    if len(names) < len(cells):
        shown = f"most sensitive of {len(cells)}"
    # Over both parts: with two columns the map is narrower than the title.
    figure.suptitle(
        f"Layers quantized alone; {len(names)} {shown}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    mesh = _draw_cells(heat, cells, names, ordered)
    _draw_changes(heat, mesh, cells, names, ordered)
    _draw_scale(figure, heat, mesh, search["metric"])
    _draw_chosen(heat, chosen, names, ordered)
    bars.legend(loc="upper left", bbox_to_anchor=(0, 0))
    return figure


def _most_sensitive(cells) -> list[str]:
    """Return the layers to draw, in the order of the model."""

    def largest(name: str) -> float:
        return max(_finite(row["distance"]) for row in cells[name].values())

    return _largest(cells, largest, _MOST_LAYERS)


def _largest(names: Collection[str], key: Callable, most: int) -> list[str]:
    """Return the names with the largest keys, in their own order."""
    shown = set(sorted(names, key=key, reverse=True)[:most])
    return [name for name in names if name in shown]


def _finite(value: Optional[float]) -> float:
    return value if is_number(value) else 0.0


def _draw_cells(axes, cells, names, widths):
    """Draw the distances, on a scale of powers of ten, and return them."""
    distances = [
        _finite(cells[name].get(bits, {}).get("distance"))
        for name in names
        for bits in widths
    ]
    masked = np.ma.masked_less_equal(distances, 0)
    masked = masked.reshape(len(names), len(widths))
    low, high = 1e-7, 1.0
    if masked.count():
        low, high = float(masked.min()), float(masked.max())
    return axes.pcolormesh(
        masked,
        cmap="YlOrRd",
        norm=LogNorm(max(low, high * 1e-7), max(high, low * 1.01)),
        edgecolors=COLORS["paper"],
        linewidth=0.8,
        gid="distances",
    )


def _draw_changes(axes, mesh, cells, names, widths) -> None:
    """Write down the changes of the metric whose interval excludes 0."""
    for i, name in enumerate(names):
        for j, bits in enumerate(widths):
            row = cells[name].get(bits)
            if row is None or row["low"] is None or row["high"] is None:
                continue
            if row["low"] > 0 or row["high"] < 0:
                distance = max(_finite(row["distance"]), mesh.norm.vmin)
                is_dark = mesh.norm(distance) > 0.65
                axes.text(
                    j + 0.5, i + 0.53, f"{row['change']:+.2f}", ha="center",
                    va="center", fontsize=6.5, gid="change",
                    color=COLORS["on_dark" if is_dark else "on_light"],
                )  # fmt: skip


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
        corner = widths.index(chosen[name]) + 0.05, i + 0.08
        frame = Rectangle(
            corner, 0.9, 0.84, fill=False, edgecolor=COLORS["frame"],
            linewidth=1.4, gid="plan",
        )  # fmt: skip
        axes.add_patch(frame)


# -- units -------------------------------------------------------------------


@styled()
def units_figure(
    search: dict, threshold: Optional[float], unit: str = "points"
) -> Figure:
    """Draw the change of the metric by search unit, flagged ones in red.

    Arguments
    ---------
    search : dict
        The report of a search by ``method: stablequant``.
    threshold : float, optional
        Change from which a unit is flagged, ``flag_threshold``.
    unit : str
        Unit of measure of a change, such as ``points``.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    rows = search["sensitivity"]
    names = _most_sensitive_units(rows)
    figure, axes = chart(7.2, 1.1 + 0.2 * max(len(names), 3))
    bare(axes)
    places = np.arange(len(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(places, label_names(names), fontsize=7)
    reach = _reach([rows[name] for name in names], threshold)
    axes.set_xlim(-reach[0], reach[1])
    axes.grid(axis="x", color=COLORS["light"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(0, color=COLORS["grey"], linewidth=0.8)
    if threshold is not None:
        axes.axvline(
            threshold, color=COLORS["red"], linewidth=1, linestyle=(0, (4, 3)),
            gid="threshold",
        )  # fmt: skip
    for place, name in enumerate(names):
        cut = search["percentiles"].get(name)
        note = "" if cut is None else f", {cut_text(cut['chosen'])}"
        _draw_unit(axes, place, rows[name], note, reach)
    metric = (search.get("joint") or {}).get("metric") or "metric"
    what = f"{metric}, {unit}" if unit else metric
    axes.set_xlabel(f"change of {what}, 95 % interval")
    axes.set_title(_title(len(names), len(search["sensitivity"]), threshold))
    return figure


def _title(shown: int, count: int, threshold: Optional[float]) -> str:
    title = f"{count} units quantized alone, ranges by max"
    if shown < count:
        title = f"{shown} most sensitive of {title}"
    if threshold is not None:
        title += f"; flagged above {threshold:g}"
    return title


def _most_sensitive_units(rows: Mapping[str, dict]) -> list[str]:
    """Return the search units to draw, in the order of the model."""

    def sensitivity(name: str) -> tuple:
        change = rows[name]["change"]
        known = is_number(change)
        return rows[name]["flagged"], not known, change if known else 0.0

    return _largest(rows, sensitivity, _MOST_UNITS)


def _reach(rows: list[dict], threshold: Optional[float]) -> tuple[float, float]:
    """Return the ends of the axis: one broken unit must not hide the rest."""
    changes = [abs(r["change"]) for r in rows if is_number(r["change"])]
    ends = [
        abs(row[key]) for row in rows for key in ("low", "high")
        if is_number(row[key])
    ]  # fmt: skip
    usual = 4 * float(np.median(ends)) if ends else 0.0
    limit = max(usual, 4 * (threshold or 0.0), 1e-6)
    right = min(max([*changes, *ends, 0.0]), limit)
    right = max(right, 1.6 * (threshold or 0.0), 1e-6) * 1.12
    lows = [-r["low"] for r in rows if is_number(r["low"])]
    lows += [-r["change"] for r in rows if is_number(r["change"])]
    left = max([*lows, 0.1 * right])
    return min(left * 1.05, right), right


def _draw_unit(axes, place: int, row: dict, note: str, reach) -> None:
    left, right = -reach[0], reach[1]
    color = COLORS["red" if row["flagged"] else "blue"]
    label = "not a number"
    if is_number(row["change"]):
        change = min(max(row["change"], left), right)
        axes.barh(
            place, change, 0.66, color=color,
            gid="flagged" if row["flagged"] else "unit",
        )  # fmt: skip
        # A bar that leaves the picture says so.
        label = f"{row['change']:+.2f}" + " ▸" * (row["change"] > right)
    if is_number(row["low"]) and is_number(row["high"]):
        ends = [min(max(row[key], left), right) for key in ("low", "high")]
        axes.hlines(
            place, *ends, color=COLORS["ink"], linewidth=0.9, gid="interval"
        )
    write_beside(
        axes, label + note, right, place, fontsize=7,
        color=color if row["flagged"] else COLORS["ink"], annotation_clip=False,
    )  # fmt: skip
