"""Runtimes compute on the CPU, in float32 outside, and say so."""

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


def test_half_precision_is_refused():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize(model, [torch.randn(2, 4)], progress=False)
    model.half()
    with pytest.raises(KnobError, match="model.float()"):
        accelerate(model)
    accelerate(model.float(), cache_folder=False)


def test_allow_float_takes_names():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize(model, [torch.randn(2, 4)], progress=False)
    with pytest.raises(KnobError, match="allow_float is 3"):
        accelerate(model, allow_float=3)


def test_allow_float_without_a_match_is_told(caplog):
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize(model, [torch.randn(2, 4)], progress=False)
    accelerate(model, allow_float=["encoder.*"], cache_folder=False)
    assert "no quantized layer is called 'encoder.*'" in caplog.text
