"""One look for all pictures, and files that do not change by themselves."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

__all__ = ["COLORS", "save_figure", "styled"]

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
    paths = []
    for ending, metadata in (
        (".png", {"Software": None}),
        (".svg", {"Date": None, "Creator": None}),
    ):
        path = stem.with_name(stem.name + ending)
        figure.savefig(path, dpi=150, metadata=metadata)
        paths.append(path)
    return paths
