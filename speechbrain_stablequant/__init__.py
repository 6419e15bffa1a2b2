"""Post-training quantization for SpeechBrain recipes.

Add one block to the hparams of a recipe and run it as usual::

    ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
        checkpointer: !ref <checkpointer>
"""

from speechbrain_stablequant.api import QuantizationResult, quantize
from speechbrain_stablequant.brain import PostTrainingQuantizationMixin
from speechbrain_stablequant.checkpoint import (
    load_quantized,
    read_header,
    save_quantized,
)
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.plan import QuantizationPlan
from speechbrain_stablequant.quantizer import PostTrainingQuantizer
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from speechbrain_stablequant.waveforms import WaveformBatches

__version__ = "0.1.0"

__all__ = [
    "PostTrainingQuantizationMixin",
    "PostTrainingQuantizer",
    "QuantizationPlan",
    "QuantizationResult",
    "StableQuantError",
    "WaveformBatches",
    "accelerate",
    "decelerate",
    "load_quantized",
    "quantize",
    "read_header",
    "runtime_report",
    "save_quantized",
]
