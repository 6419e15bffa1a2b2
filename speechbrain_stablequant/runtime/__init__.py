"""Run quantized models on integer kernels."""

from speechbrain_stablequant.runtime.accelerate import (
    Acceleration,
    accelerate,
    decelerate,
    make_backend,
    require_cpu,
    running,
    runtime_report,
)
from speechbrain_stablequant.runtime.execution import (
    CompiledModuleReport,
    LayerExecution,
    RuntimeReport,
)
from speechbrain_stablequant.runtime.onnx import ExportedOnnx, export_onnx
from speechbrain_stablequant.runtime.state import IN_PARTS

__all__ = [
    "IN_PARTS",
    "Acceleration",
    "ExportedOnnx",
    "LayerExecution",
    "RuntimeReport",
    "CompiledModuleReport",
    "accelerate",
    "decelerate",
    "export_onnx",
    "make_backend",
    "require_cpu",
    "running",
    "runtime_report",
]
