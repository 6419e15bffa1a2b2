"""Quantization-aware training: layers with learned steps, distillation.

`speechbrain_stablequant.methods.training.loop` puts them into a recipe's own
loop; the options are in `speechbrain_stablequant.methods.training_settings`.
"""
