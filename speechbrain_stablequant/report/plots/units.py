"""Sensitivity of units: what each costs when only it is quantized."""

from collections.abc import Mapping
from typing import Optional

import numpy as np
from matplotlib.figure import Figure

from speechbrain_stablequant.core.format import is_number
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    bare,
    label_names,
    styled,
)
from speechbrain_stablequant.report.rows import cut_text

__all__ = ["units_figure"]

_MOST_UNITS = 60  # rows that a page bears


@styled()
def units_figure(
    search: dict, threshold: Optional[float], unit: str = "points"
) -> Figure:
    """Draw the change of the metric by unit, flagged ones in red.

    Arguments
    ---------
    search : dict
        The report of a search by ``method: stablequant``.
    threshold : float, optional
        Change from which a unit is flagged, ``flag_threshold``.
    unit : str
        Unit of a change.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    rows = _shown(search["sensitivity"])
    names = list(rows)
    figure = Figure(
        figsize=(7.2, 1.1 + 0.2 * max(len(names), 3)), layout="constrained"
    )
    axes = figure.add_subplot()
    bare(axes)
    places = np.arange(len(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(places, label_names(names), fontsize=7)
    reach = _reach(rows.values(), threshold)
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
        _draw_unit(axes, place, rows[name], _note(search, name), reach)
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


def _shown(rows: Mapping[str, dict]) -> dict[str, dict]:
    """Return the rows to draw, in the order of the model."""

    def badness(name: str) -> tuple:
        change = rows[name]["change"]
        known = is_number(change)
        return rows[name]["flagged"], not known, change if known else 0.0

    if len(rows) <= _MOST_UNITS:
        return dict(rows)
    most = set(sorted(rows, key=badness, reverse=True)[:_MOST_UNITS])
    return {name: row for name, row in rows.items() if name in most}


def _reach(rows, threshold: Optional[float]) -> tuple[float, float]:
    """Return the ends of the axis: one broken unit must not hide the rest."""
    rows = list(rows)
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


def _note(search: dict, name: str) -> str:
    cut = search["percentiles"].get(name)
    if cut is None:
        return ""
    return cut_text(cut["chosen"])


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
    axes.annotate(
        f"{label}, {note}" if note else label, (right, place), xytext=(6, 0),
        textcoords="offset points", va="center", fontsize=7,
        color=color if row["flagged"] else COLORS["ink"],
        annotation_clip=False,
    )  # fmt: skip
