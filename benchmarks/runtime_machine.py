"""What the runtime benchmark ran on."""

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

__all__ = ["cpu_flags", "machine"]

FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
)
PACKAGES = (
    "speechbrain_stablequant",
    "torch",
    "torchao",
    "speechbrain",
    "transformers",
    "numpy",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "ctranslate2",
)


def cpu_flags() -> set[str]:
    """Return the instruction sets of this CPU that matter here."""
    return set(_cpuinfo("flags").split()) & set(FLAGS)


def machine() -> dict:
    """Return CPU, its instruction sets, memory, versions and date."""
    found = cpu_flags()
    return {
        "cpu": _cpuinfo("model name") or platform.processor(),
        "flags": {flag: flag in found for flag in FLAGS},
        "cores": _cores(),
        "memory_gib": round(memory_gib("MemTotal"), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def memory_gib(key: str) -> float:
    """Return a line of ``/proc/meminfo`` in GiB; 8 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 8.0
    found = next(line for line in lines if line.startswith(f"{key}:"))
    return int(found.split()[1]) / 2**20


def process_mib(key: str) -> float:
    """Return memory of this process: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{key}:"))
    return int(found.split()[1]) / 2**10


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (ln.split(":", 1)[1] for ln in lines if ln.startswith(key))
    return next(values, "").strip()


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _version(package: str):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
