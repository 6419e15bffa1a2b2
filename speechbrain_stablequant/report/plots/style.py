"""One look for all pictures, and reproducible files."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from speechbrain_stablequant.report.colors import COLORS

__all__ = [
    "COLORS",
    "bare",
    "chart",
    "color_legend",
    "label_names",
    "map_and_bytes",
    "power_label",
    "save_figure",
    "styled",
    "svg_text",
    "write_beside",
]

_STYLE = {
    "font.size": 9,
    "axes.edgecolor": COLORS["grey"],
    "axes.labelcolor": COLORS["ink"],
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["ink"],
    "ytick.color": COLORS["ink"],
    "legend.edgecolor": "white",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names of layers and tests are not formulas
    "svg.fonttype": "none",  # text that can be searched and read aloud
    "svg.hashsalt": "speechbrain_stablequant",  # else ids are random
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in this style, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def save_figure(
    figure: Figure, stem: Path, svg: Optional[str] = None
) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    stem : Path
        Where to, without an ending.
    svg : str, optional
        The result of `svg_text` where it is known: drawing takes time.

    Returns
    -------
    list of Path
        The PNG and the SVG.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, vector = (stem.with_name(stem.name + end) for end in (".png", ".svg"))
    vector.write_text(svg or svg_text(figure), encoding="utf-8")
    with styled():
        figure.savefig(png, dpi=150, metadata={"Software": None})
    return [png, vector]


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG document.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.

    Returns
    -------
    str
        Text stays text: it can be searched, and a page can style it.
    """
    file = io.BytesIO()
    with styled():
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None}
        )
    return file.getvalue().decode("utf-8")


def chart(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure, size in inches, and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def bare(axes: Axes) -> None:
    """Remove the frame and the ticks of axes with labelled rows."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def write_beside(axes: Axes, text: str, x: float, y: float, **look) -> None:
    """Write to the right of a point, in the font size of such notes."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center",
        **{"fontsize": 8, **look},
    )  # fmt: skip


def color_legend(figure: Figure, colors: Mapping[str, str]) -> None:
    """Name colours in one row above a figure of bars: name to colour."""
    figure.legend(
        [Patch(color=COLORS[color]) for color in colors.values()],
        list(colors), loc="outside upper left", ncols=len(colors),
        frameon=False, handlelength=1, columnspacing=1.2,
    )  # fmt: skip


def map_and_bytes(
    names: Sequence[str],
    widths: Sequence[str],
    rows: Iterable[Sequence[dict]],
    label: str,
    size: tuple[float, float],
) -> tuple[Figure, Axes, Axes]:
    """Return a figure with a map by layer and bit width, beside bars of bytes.

    Arguments
    ---------
    names : sequence of str
        The layers (or types of layers), a row each.
    widths : sequence of str
        The bit widths, a column each.
    rows : iterable of sequences of dict
        For each name the ``layers`` of a report whose bytes add up to its bar.
    label : str
        What the legend calls the bytes as planned.
    size : tuple of float
        Of the figure, in inches.

    Returns
    -------
    tuple
        The figure, the axes of the map (still empty, cells of one by one) and
        those of the bars (megabytes in float, and as planned).
    """
    figure = Figure(figsize=size, layout="constrained")
    ratios = [max(len(widths), 1) * 0.62, 2.3]
    cells, bars = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": ratios}
    )
    places = np.arange(len(names)) + 0.5
    cells.set_xlim(0, max(len(widths), 1))
    cells.set_ylim(len(names), 0)
    cells.set_xticks(np.arange(len(widths)) + 0.5, widths)
    cells.set_yticks(places, label_names(names), fontsize=7)
    rows = list(rows)
    for key, color, name in (
        ("float_num_bytes", "light", "float"),
        ("num_bytes", "blue", label),
    ):
        sizes = [sum(row[key] for row in found) / 1e6 for found in rows]
        bars.barh(places, sizes, 0.72, color=COLORS[color], label=name)
    bars.xaxis.set_major_locator(MaxNLocator(3))
    bars.set_title("MB, weights and scales", fontsize=9)
    for axes in (cells, bars):
        bare(axes)
        axes.xaxis.tick_top()
    bars.tick_params(labelleft=False)
    return figure, cells, bars


def power_label(value: float, _=None) -> str:
    """Return the label of a tick on a logarithmic scale, without markup.

    Example
    -------
    >>> power_label(1e-5), power_label(0.5)
    ('10⁻⁵', '')
    """
    exponent = math.log10(value) if value > 0 else 0.5
    if abs(exponent - round(exponent)) > 1e-9:
        return ""
    digits = str(round(exponent))
    return "10" + digits.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def label_names(names: Sequence[str], most: int = 52) -> list[str]:
    """Shorten names to labels that fit beside a picture.

    The parts that most names begin with are left out, also when a few names,
    such as those of the output layer, begin otherwise.

    Arguments
    ---------
    names : sequence of str
        Names of layers or units.
    most : int
        Characters of a label at most; longer ones lose their middle.

    Example
    -------
    >>> label_names(["model.a.conv", "model.b.conv"])
    ['a.conv', 'b.conv']
    >>> label_names(["m.enc.a", "m.enc.b", "m.enc.c", "m.enc.d", "head"])
    ['…a', '…b', '…c', '…d', 'head']
    >>> label_names(["model.a_very_long_name"], most=9)
    ['mode…name']
    """
    prefix = _common_prefix(names)
    mark = "" if all(name.startswith(prefix) for name in names) else "…"
    labels = []
    for name in names:
        if prefix and name.startswith(prefix):
            name = mark + name[len(prefix) :]
        text = "".join(c if c.isprintable() else "?" for c in name)
        if len(text) > most:
            half = (most - 1) // 2
            text = f"{text[: most - 1 - half]}…{text[-half:]}"
        labels.append(text)
    return labels


def _common_prefix(names: Sequence[str]) -> str:
    """Return the parts that nearly all names begin with, dots included."""
    prefix = ""
    while len(names) > 1:
        parts = Counter(
            name[len(prefix) :].split(".")[0]
            for name in names
            if name.startswith(prefix) and "." in name[len(prefix) :]
        )
        if not parts or max(parts.values()) < 0.8 * len(names):
            break
        prefix += parts.most_common(1)[0][0] + "."
    return prefix
