"""ONNX files with the very integers of a model, and ONNX Runtime to run them."""

from speechbrain_stablequant.runtime.onnx.onnx_backend import (
    ExportedOnnx,
    OnnxBackend,
    export_onnx,
)

__all__ = ["ExportedOnnx", "OnnxBackend", "export_onnx"]
