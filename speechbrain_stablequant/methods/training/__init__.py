"""Quantization-aware training: layers with learned steps, distillation.

`speechbrain_stablequant.methods.training.loop` puts them into a recipe's own loop.
"""

from speechbrain_stablequant.methods.training.settings import TrainingSettings

__all__ = ["TrainingSettings"]
