"""ONNX files with exactly a model's integers, and ONNX Runtime."""

from speechbrain_stablequant.runtime.onnx.onnx_backend import (
    ExportedOnnx,
    OnnxBackend,
    export_onnx,
)

__all__ = ["ExportedOnnx", "OnnxBackend", "export_onnx"]
