"""Runtimes compute on the CPU and say so."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant import accelerate, quantize
from speechbrain_stablequant.errors import KnobError


def test_model_elsewhere_is_refused():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize(model, [torch.randn(2, 4)], progress=False)
    model.to("meta")
    with pytest.raises(KnobError, match="on meta.*--device cpu"):
        accelerate(model)
    assert "forward" not in vars(model[0])
