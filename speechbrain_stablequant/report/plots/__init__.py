"""Pictures of a report; the only code that needs matplotlib.

Drawn on figures of their own, so that a program that plots too keeps its
backend and its style. The same data gives the same bytes. One module a
picture, each with a function that returns its figure.
"""

from speechbrain_stablequant.report.plots.bars import sizes_figure, speed_figure
from speechbrain_stablequant.report.plots.bits import bits_figure
from speechbrain_stablequant.report.plots.front import front_figure, plot_front
from speechbrain_stablequant.report.plots.histograms import histograms_figure
from speechbrain_stablequant.report.plots.sensitivity import (
    plot_sensitivity,
    sensitivity_figure,
    units_figure,
)
from speechbrain_stablequant.report.plots.style import save_figure, svg_text

__all__ = [
    "bits_figure",
    "front_figure",
    "histograms_figure",
    "plot_front",
    "plot_sensitivity",
    "save_figure",
    "sensitivity_figure",
    "sizes_figure",
    "speed_figure",
    "svg_text",
    "units_figure",
]
