"""What a figure was measured on."""

import contextlib
import platform
from importlib import metadata
from pathlib import Path

import speechbrain
import torch

from speechbrain_stablequant.runtime.processor import detect_processor

__all__ = ["environment"]


def environment() -> dict:
    """Return hardware and versions, to stand beside measured figures.

    Returns
    -------
    dict
        Plain data: processor, threads and versions.

    Example
    -------
    >>> environment()["threads"] >= 1
    True
    """
    runtimes = {}
    for name in ("openvino", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            runtimes[name] = metadata.version(name)
    return {
        "processor": _processor(),
        "features": sorted(detect_processor().features),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "speechbrain": speechbrain.__version__,
        **runtimes,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1] for line in lines if "model name" in line)
    found = next(names, "").strip()
    return found or platform.processor() or platform.machine()
