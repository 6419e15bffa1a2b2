"""The Pareto front: the metric of plans against their size."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Optional

from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
)

from speechbrain_stablequant.core.format import (
    decimals,
    interval,
    is_number,
    number,
)
from speechbrain_stablequant.report.pareto import Front, FrontPoint
from speechbrain_stablequant.report.plots.style import (
    COLORS,
    chart,
    power_label,
    styled,
)

__all__ = ["front_figure"]

_MARKERS = "os^DvPX<>*hp"
_PALETTE = ("blue", "yellow", "red", "purple", "sky", "ink")
_TICKS = (
    1 / 32, 0.045, 1 / 16, 0.09, 1 / 8, 0.18, 1 / 4, 0.35, 1 / 2, 0.7, 1.0,
)  # fmt: skip
_SAME_SIZE = 1.03  # points whose sizes differ by less are set side by side


@styled()
def front_figure(front: Front) -> Figure:
    """Draw the metric of plans against their size.

    Arguments
    ---------
    front : Front
        What to draw.

    Returns
    -------
    matplotlib.figure.Figure
        The figure.
    """
    # The legend names each extra point in two lines.
    high = max(4.4, 1.2 + 0.36 * len(front.extra))
    figure, axes = chart(9.4 if front.extra else 7.2, high)
    bottom, top = _limits(front)
    _draw_axes(axes, front, bottom, top)
    _draw_references(axes, front)
    _draw_points(axes, front, top)
    _draw_extra(axes, front, top)
    place = {"loc": "upper right"}
    if front.extra:
        place = {"loc": "upper left", "bbox_to_anchor": (1.12, 1.02)}
    axes.legend(labelspacing=0.7, **place)
    return figure


# -- the frame ---------------------------------------------------------------


def _limits(front: Front) -> tuple[float, float]:
    """Return the ends of the vertical axis.

    The axis is linear and shows the budget. Plans far beyond it become arrows at
    the upper end: one of them would flatten all others into a line.
    """
    points = front.everything
    values = [p.value for p in points]
    if front.metric is None:
        positive = [v for v in values if v > 0] or [1.0]
        return min(positive) / 2, max(positive) * 2
    base = front.float_value
    values = values or [0.0]
    base = base if is_number(base) else min(values)
    reach = [4 * front.budget.get("max_drop", 0.0), 0.03 * abs(base), 1e-4]
    for point in points:
        if point.chosen:
            reach += [3 * abs(point.value - base), _half_width(point) * 2]
    # Where nothing was chosen, show 70 % of the points well.
    spread = sorted(abs(v - base) for v in values)
    if front.extra:
        reach.append(1.5 * spread[int(0.7 * (len(spread) - 1))])
        reach += [1.2 * _half_width(p) for p in points]
    reach = min(max(reach), max(1.15 * spread[-1], reach[0], reach[1]))
    inside = [p for p in points if p.value <= base + reach]
    lows = [_end(p, p.low) for p in inside if p.efficient or p.label]
    low = min([base, *(p.value for p in inside), *lows])
    return max(low, base - reach) - 0.08 * reach, base + 1.08 * reach


def _draw_axes(axes, front: Front, bottom: float, top: float) -> None:
    ratios = [p.ratio for p in front.everything] or [0.25]
    axes.set_xscale("log", base=2)
    left, right = min(ratios) / 1.15, max(1.0, *ratios) * 1.12
    axes.set_xlim(left, right)
    ticks = [t for t in _TICKS if left <= t <= right]
    if len(ticks) > 7:
        ticks = [t for t in ticks if math.log2(t).is_integer()]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    label = "size, part of the float model's bytes"
    if _side_by_side(front.extra) != [p.ratio for p in front.extra]:
        label += " (equal sizes are set side by side)"
    axes.set_xlabel(label)
    axes.set_title(front.title)
    axes.grid(color=COLORS["light"], linewidth=0.6)
    axes.set_axisbelow(True)
    if front.metric is None:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(power_label))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("distance of the output (squared, relative)")
        axes.spines["right"].set_visible(False)
        axes.set_ylim(bottom, top)
        return
    axes.set_ylim(bottom, top)
    axes.set_ylabel(front.metric)
    base = front.float_value
    if is_number(base):
        right_axis = axes.secondary_yaxis(
            "right", functions=(lambda v: v - base, lambda c: c + base)
        )
        right_axis.yaxis.set_major_formatter(FuncFormatter(_signed))
        unit = f", {front.unit}" if front.unit else ""
        right_axis.set_ylabel(f"change from float{unit}, 95 % interval")


def _percent(ratio: float, _=None) -> str:
    return f"{100 * ratio:.4g} %"


def _rounded(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _signed(change: float, _=None) -> str:
    return "0" if abs(change) < 1e-9 else f"{change:+.3g}"


def _draw_references(axes, front: Front) -> None:
    """Draw the float model and the budget."""
    green = {"color": COLORS["green"], "linewidth": 1, "gid": "budget"}
    base = front.float_value
    if front.metric is not None and is_number(base):
        digits = decimals(base)
        axes.axhline(
            base,
            color=COLORS["ink"],
            linestyle=(0, (5, 3)),
            linewidth=1,
            label=f"float: {front.metric} {number(base, digits)}",
            gid="float",
        )
        max_drop = front.budget.get("max_drop")
        if max_drop is not None:
            label = f"budget: max_drop {max_drop:g}"
            axes.axhline(base + max_drop, label=label, **green)
    target = front.budget.get("target_size")
    if target is not None:
        axes.axvline(target, label=f"budget: target_size {target:g}", **green)


# -- points ------------------------------------------------------------------


def _draw_points(axes, front: Front, top: float) -> None:
    """Draw the plans of a search and the staircase of the efficient ones."""
    points = [p for p in front.points if p.is_drawable]
    rest = [p for p in points if not p.efficient and not p.chosen]
    efficient = [p for p in points if p.efficient]
    _staircase(axes, efficient, top)
    grey, blue = COLORS["grey"], COLORS["blue"]
    _scatter(axes, rest, top, grey, "o", 14, "measured", "measured", bars=False)
    _scatter(axes, efficient, top, blue, "o", 26, "efficient", "efficient")
    for point in points:
        if point.chosen:
            digits = decimals(point.value, front.float_value)
            text = f"chosen: {_rounded(point.ratio)}"
            if front.metric is not None:
                text += f", {front.metric} {number(point.value, digits)}"
            _scatter(
                axes, [point], top, COLORS["red"], "*", 150, "chosen", text
            )


def _draw_extra(axes, front: Front, top: float) -> None:
    """Draw each of the extra points with a marker of its own."""
    points = [p for p in front.extra if p.is_drawable]
    places = _side_by_side(points)
    drawn = [
        dataclasses.replace(p, ratio=place) for p, place in zip(points, places)
    ]
    if not front.points:
        _staircase(axes, [p for p in drawn if p.efficient], top)
    groups = list(dict.fromkeys(p.group for p in points))
    for index, point in enumerate(points):
        digits = decimals(point.value, front.float_value)
        text = f"{point.label}\n  {_rounded(point.ratio)}, "
        text += number(point.value, digits)
        if point.change is not None:
            text += f" ({interval(vars(point), digits)})"
        color = _PALETTE[groups.index(point.group) % len(_PALETTE)]
        marker = _MARKERS[index % len(_MARKERS)]
        size = 90 if marker == "*" else 44
        _scatter(
            axes, [drawn[index]], top, COLORS[color], marker, size,
            f"extra-{index}", text,
        )  # fmt: skip


def _side_by_side(points: Sequence[FrontPoint]) -> list[float]:
    """Return sizes to draw points at, so that none covers another."""
    order = sorted(range(len(points)), key=lambda i: points[i].ratio)
    groups: list[list[int]] = []
    for index in order:
        ratio = points[index].ratio
        if groups and ratio < points[groups[-1][0]].ratio * _SAME_SIZE:
            groups[-1].append(index)
        else:
            groups.append([index])
    places = [0.0] * len(points)
    for group in groups:
        middle = (len(group) - 1) / 2
        for place, index in enumerate(group):
            shift = _SAME_SIZE ** (place - middle)
            places[index] = points[index].ratio * shift
    return places


def _staircase(axes, efficient: Sequence[FrontPoint], top: float) -> None:
    """Draw the best value that each size allows."""
    if not efficient:
        return
    efficient = sorted(efficient, key=lambda p: p.ratio)
    ratios = [p.ratio for p in efficient] + [axes.get_xlim()[1]]
    values = [p.value for p in efficient] + [efficient[-1].value]
    axes.step(
        ratios, values, where="post", color=COLORS["sky"], linewidth=1,
        zorder=1.5, gid="staircase",
    )  # fmt: skip


def _scatter(axes, points, top, color, marker, size, gid, label, bars=True):
    """Draw points; those beyond the upper end as arrows with a number."""
    inside = [p for p in points if p.value <= top]
    beyond = [p for p in points if p.value > top]
    for point in inside if bars else ():
        if None not in (point.low, point.high):
            ends = _end(point, point.low), _end(point, point.high)
            axes.vlines(
                point.ratio, *ends, color=color, linewidth=1.2, alpha=0.45,
                zorder=2,
            )  # fmt: skip
    if points:
        # Drawn even where empty: the legend names what lies beyond too.
        axes.scatter(
            [p.ratio for p in inside], [p.value for p in inside], s=size,
            color=color, marker=marker, edgecolor=COLORS["paper"],
            linewidth=0.6, zorder=4 if marker == "*" else 3, label=label,
            gid=gid,
        )  # fmt: skip
    edge = axes.get_xaxis_transform()
    for point in beyond:
        axes.scatter(
            [point.ratio], [0.985], s=22, color=color, marker="^",
            transform=edge, clip_on=False, zorder=3, gid=f"{gid}-beyond",
        )  # fmt: skip
        if bars:
            axes.annotate(
                f"{point.value:.3g}", (point.ratio, 0.985), xycoords=edge,
                xytext=(0, -11), textcoords="offset points", ha="center",
                fontsize=7, color=color,
            )  # fmt: skip


def _end(point: FrontPoint, change: Optional[float]) -> float:
    """Return an end of the interval on the axis of the metric."""
    if change is None or point.change is None:
        return point.value
    return point.value - point.change + change


def _half_width(point: FrontPoint) -> float:
    if point.low is None or point.high is None:
        return 0.0
    return (point.high - point.low) / 2
