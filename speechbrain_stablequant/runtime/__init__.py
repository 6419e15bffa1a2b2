"""Run quantized models on integer kernels."""

from speechbrain_stablequant.runtime.accelerate import (
    Acceleration,
    accelerate,
    decelerate,
    make_backend,
    running,
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
    "decelerate",
    "make_backend",
    "running",
    "runtime_report",
]
