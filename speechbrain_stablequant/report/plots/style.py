"""One look for all pictures, and files that do not change by themselves.

A page replaces the colours named here by variables of its style sheet, so that
pictures follow its light and dark theme.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "bare",
    "label_names",
    "save_figure",
    "short_names",
    "styled",
]

# By Okabe and Ito: told apart with any kind of colour vision.
COLORS = {
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#009e73",
    "purple": "#a2558a",
    "yellow": "#c69214",
    "sky": "#4a9fd0",
    "ink": "#333333",
    "grey": "#9a9a9a",
    "light": "#e6e6e6",
    "paper": "#ffffff",
    # On a patch of colour, where the theme of the page is not to change it
    "on_light": "#222222",
    "on_dark": "#fefefe",
}

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
    "text.parse_math": False,  # names of layers and tests are no formulas
    "svg.fonttype": "none",  # text that can be searched and read aloud
    "svg.hashsalt": "speechbrain_stablequant",  # else names are random
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw in our look, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Arguments
    ---------
    figure : matplotlib.figure.Figure
        The figure.
    stem : Path
        Where to, without an ending.

    Returns
    -------
    list of Path
        Both files.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": None}),
    ):
        path = stem.with_name(stem.name + ending)
        with styled():
            figure.savefig(path, dpi=150, metadata=metadata)
        paths.append(path)
    return paths


def bare(axes) -> None:
    """Take frame and ticks from axes whose rows have labels of their own."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out the parts of names that all layers begin with.

    Example
    -------
    >>> short_names(["model.a.conv", "model.b.conv"])
    ['a.conv', 'b.conv']
    """
    parts = [name.split(".") for name in names]
    skip = 0
    while all(len(p) > skip + 1 for p in parts) and (
        len({p[skip] for p in parts}) == 1
    ):
        skip += 1
    return [".".join(p[skip:]) for p in parts]


def label_names(names: Sequence[str], most: int = 46) -> list[str]:
    """Return names short enough to stand beside a picture.

    Arguments
    ---------
    names : sequence of str
        Names of layers or units.
    most : int
        Characters that a label may have; the middle of longer ones goes.

    Example
    -------
    >>> label_names(["model.encoder", "model.a_very_long_name"], most=9)
    ['encoder', 'a_ve…name']
    """
    labels = []
    for name in short_names(names) if len(names) > 1 else names:
        text = "".join(c if c.isprintable() else "?" for c in name)
        if len(text) > most:
            half = (most - 1) // 2
            text = f"{text[: most - 1 - half]}…{text[-half:]}"
        labels.append(text)
    return labels
