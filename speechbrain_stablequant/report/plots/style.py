"""One look for all pictures, and reproducible files."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from speechbrain_stablequant.report.colors import COLORS

__all__ = [
    "COLORS",
    "bare",
    "draw_bytes",
    "label_names",
    "power_label",
    "save_figure",
    "styled",
    "svg_text",
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


def bare(axes) -> None:
    """Remove the frame and the ticks of axes with labelled rows."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_bytes(axes, rows: Iterable[Sequence[dict]], label: str) -> None:
    """Draw megabytes in float and as planned, below each other.

    Arguments
    ---------
    axes : matplotlib.axes.Axes
        What to draw on; a row is one unit of its vertical axis high.
    rows : iterable of sequences of dict
        For each bar the ``layers`` of a report whose bytes add up to it.
    label : str
        What the legend calls the bytes as planned.
    """
    rows = list(rows)
    places = [place + 0.5 for place in range(len(rows))]
    for key, color, name in (
        ("float_num_bytes", "light", "float"),
        ("num_bytes", "blue", label),
    ):
        sizes = [sum(row[key] for row in found) / 1e6 for found in rows]
        axes.barh(places, sizes, 0.72, color=COLORS[color], label=name)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(length=0, labelleft=False)
    axes.xaxis.tick_top()
    axes.set_title("MB, weights and scales", fontsize=9)
    for side in ("right", "bottom"):
        axes.spines[side].set_visible(False)


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
