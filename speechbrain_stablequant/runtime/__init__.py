"""Run quantized models on integer kernels."""

from speechbrain_stablequant.runtime.accelerate import (
    Acceleration,
    accelerate,
    accelerated,
    decelerate,
    runtime_report,
)
from speechbrain_stablequant.runtime.execution import (
    LayerExecution,
    RuntimeReport,
    UnitReport,
)

__all__ = [
    "Acceleration",
    "LayerExecution",
    "RuntimeReport",
    "UnitReport",
    "accelerate",
    "accelerated",
    "decelerate",
    "runtime_report",
]
