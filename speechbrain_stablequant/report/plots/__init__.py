"""Pictures of a report; the only code that needs matplotlib.

Each function takes plain data and returns a figure of its own, so that a
program that plots too keeps its backend and its style. The same data gives the
same bytes.
"""

from speechbrain_stablequant.report.plots.bars import sizes_figure, speed_figure
from speechbrain_stablequant.report.plots.bits import bits_figure
from speechbrain_stablequant.report.plots.front import front_figure
from speechbrain_stablequant.report.plots.histograms import histograms_figure
from speechbrain_stablequant.report.plots.sensitivity import (
    sensitivity_figure,
    units_figure,
)
from speechbrain_stablequant.report.plots.style import save_figure, svg_text

__all__ = [
    "bits_figure",
    "front_figure",
    "histograms_figure",
    "save_figure",
    "sensitivity_figure",
    "sizes_figure",
    "speed_figure",
    "svg_text",
    "units_figure",
]
