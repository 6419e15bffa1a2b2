"""Calibration: what enters the layers, and which range of it to keep."""

from speechbrain_stablequant.methods.calibration.collector import (
    ActivationCollector,
    Statistics,
)
from speechbrain_stablequant.methods.calibration.histogram import (
    ActivationHistogram,
)
from speechbrain_stablequant.methods.calibration.observers import (
    OBSERVERS,
    TAIL_RULES,
    choose_input,
    expected_error,
)

__all__ = [
    "OBSERVERS",
    "TAIL_RULES",
    "ActivationCollector",
    "ActivationHistogram",
    "Statistics",
    "choose_input",
    "expected_error",
]
