"""OpenVINO: int8 kernels of oneDNN on CPUs."""

from speechbrain_stablequant.runtime.openvino.openvino_backend import (
    OpenVinoBackend,
)

__all__ = ["OpenVinoBackend"]
