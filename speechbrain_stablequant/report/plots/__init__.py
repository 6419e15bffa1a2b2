"""Pictures of a mixed-precision search; the only code that needs matplotlib.

Drawn on figures of their own, so that a program that plots too keeps its
backend and its style. The same data gives the same bytes.
"""

from speechbrain_stablequant.report.plots.front import plot_front
from speechbrain_stablequant.report.plots.sensitivity import plot_sensitivity

__all__ = ["plot_front", "plot_sensitivity"]
