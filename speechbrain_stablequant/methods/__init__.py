"""How a model is quantized: options, search, rounding, training, `quantize`."""
