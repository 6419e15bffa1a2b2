"""What the processor can do with 8-bit integers and bfloat16.

Two decisions depend on it: whether what is not int8 is computed in bfloat16
(several times slower where it is emulated), and whether weights have to give
up one of their 8 bits. Processors without VNNI add pairs of 8-bit products in
16 bits with saturation, which silently falsifies large sums; with weights of 7
bits no sum can overflow, and OpenVINO and ONNX Runtime both need this from us.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Processor", "detect_processor"]

# Features that oneDNN, and with it OpenVINO, still uses under a limit set by
# the environment variable ONEDNN_MAX_CPU_ISA; other names set no limit.
_AVX2 = frozenset({"avx2"})
_AVX512 = _AVX2 | {"avx_vnni", "avx512f"}
_LIMITS = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX2_VNNI_2": _AVX2 | {"avx_vnni"},
    "AVX512_CORE": _AVX2 | {"avx512f"},
    "AVX512_CORE_VNNI": _AVX512 | {"avx512_vnni"},
    "AVX512_CORE_BF16": _AVX512 | {"avx512_vnni", "avx512_bf16"},
    "AVX512_CORE_FP16": _AVX512 | {"avx512_vnni", "avx512_bf16"},
    "AVX10_1_512": _AVX512 | {"avx512_vnni", "avx512_bf16"},
}
_KNOWN = frozenset(
    "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16".split()
)


@dataclass(frozen=True)
class Processor:
    """The instructions that decide how a quantized model should run.

    Arguments
    ---------
    architecture : str
        ``x86_64``, ``aarch64``, ...
    features : frozenset of str
        Those of avx2, avx_vnni, avx512f, avx512_vnni, avx512_bf16, amx_int8
        and amx_bf16 that may be used.

    Example
    -------
    >>> Processor("x86_64", frozenset({"avx2"})).saturates
    True
    >>> Processor("x86_64", frozenset({"avx2", "avx_vnni"})).saturates
    False
    """

    architecture: str
    features: frozenset

    @property
    def is_x86(self) -> bool:
        """Whether this is a processor of the x86 family."""
        return self.architecture.lower() in ("x86_64", "amd64", "x86", "i686")

    @property
    def has_vnni(self) -> bool:
        """Whether sums of 8-bit products are kept in 32 bits."""
        return bool(self.features & {"avx_vnni", "avx512_vnni", "amx_int8"})

    @property
    def saturates(self) -> bool:
        """Whether sums of two 8-bit products saturate at 16 bits.

        Without VNNI, x86 adds two products of an unsigned and a signed byte
        with saturation (``vpmaddubsw``): 2 x 255 x 127 does not fit, while
        weights of 7 bits do.
        """
        return self.is_x86 and not self.has_vnni

    @property
    def has_bf16(self) -> bool:
        """Whether bfloat16 products are computed in hardware."""
        return bool(self.features & {"avx512_bf16", "amx_bf16"})

    @property
    def has_amx(self) -> bool:
        """Whether there are tiles for 8-bit matrix products."""
        return "amx_int8" in self.features


def detect_processor() -> Processor:
    """Return what this processor offers, within ``ONEDNN_MAX_CPU_ISA``.

    Example
    -------
    >>> bool(detect_processor().architecture)
    True
    """
    features = _features_of_machine()
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        limit = os.environ.get(variable, "").upper()
        features &= _LIMITS.get(limit, _KNOWN)
    return Processor(platform.machine(), features)


def _features_of_machine() -> frozenset:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return _features_from_torch()
    flags = next(
        (line for line in text.splitlines() if line.startswith("flags")), ""
    )
    return _KNOWN & frozenset(flags.split())


def _features_from_torch() -> frozenset:
    """Return features as torch reports them, for systems without /proc.

    Fewer than there may be. That is safe: without VNNI weights lose a bit,
    whereas VNNI assumed by mistake would falsify sums.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    found = set()
    if "AVX" in capability:
        found.add("avx2")
    if "AVX512" in capability:
        found.add("avx512f")
    vnni = getattr(torch.cpu, "_is_vnni_supported", bool)
    if "avx512f" in found and vnni():
        found.add("avx512_vnni")
    return frozenset(found)
