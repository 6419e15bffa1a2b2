"""Post-training quantization for SpeechBrain recipes.

Add one block to the hparams of a recipe and run it as usual::

    ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
        checkpointer: !ref <checkpointer>
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Imported when first used: torch and the toolkit take seconds, which
# ``stablequant --help`` need not wait for.
_HOMES = {
    "PostTrainingQuantizationMixin": "brain",
    "PostTrainingQuantizer": "quantizer",
    "QuantizationPlan": "plan",
    "QuantizationResult": "api",
    "StableQuantError": "errors",
    "WaveformBatches": "waveforms",
    "accelerate": "runtime",
    "decelerate": "runtime",
    "load_quantized": "checkpoint",
    "quantize": "api",
    "read_header": "checkpoint",
    "runtime_report": "runtime",
    "save_quantized": "checkpoint",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{home}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
