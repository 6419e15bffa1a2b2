"""Post-training quantization for SpeechBrain recipes.

Add one block to the hparams of a recipe and run it as usual::

    ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
        checkpointer: !ref <checkpointer>
"""

from speechbrain_stablequant.core.lazy import lazy_names

__version__ = "0.1.0"

# Imported when first used: torch and SpeechBrain take seconds, which
# ``stablequant --help`` need not wait for.
_HOMES = {
    "PostTrainingQuantizationMixin": "recipe.mixin",
    "PostTrainingQuantizer": "recipe.quantizer",
    "QuantizationPlan": "core.plan",
    "QuantizationResult": "methods.module",
    "StableQuantError": "errors",
    "WaveformBatches": "recipe.waveforms",
    "accelerate": "runtime",
    "decelerate": "runtime",
    "load_quantized": "artifacts.checkpoint",
    "quantize": "methods.module",
    "read_header": "artifacts.checkpoint_reader",
    "runtime_report": "runtime",
    "save_quantized": "artifacts.checkpoint",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
