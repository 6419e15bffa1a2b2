"""Quantized modules on a GPU; skipped without one."""

import copy

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn

from speechbrain_stablequant import load_quantized, quantize, save_quantized

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)


def models():
    """Return models with a batch each."""
    torch.manual_seed(5)
    convs = nn.Sequential(
        nn.Conv1d(8, 16, 5, groups=2), nn.GELU(), nn.Conv1d(16, 8, 3)
    )
    lm = TransformerLM(
        vocab=50, d_model=32, nhead=4, num_encoder_layers=1, d_ffn=64
    )
    ecapa = ECAPA_TDNN(
        24, channels=[32] * 4 + [96], attention_channels=16, lin_neurons=16
    )
    return {
        "convolutions": (convs, torch.randn(2, 8, 60)),
        "lm": (lm, torch.randint(1, 50, (2, 12))),
        "ecapa": (ecapa, torch.randn(2, 60, 24)),
    }


@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4", "W2", "W1"])
@pytest.mark.parametrize("name", ["convolutions", "lm", "ecapa"])
def test_reference_execution_is_that_of_the_cpu(name, bits):
    model, batch = models()[name]
    model.eval()
    quantize(model, [batch], bits=bits, progress=False)
    moved = copy.deepcopy(model).cuda()
    with torch.no_grad():
        expected = model(batch)
        found = moved(batch.cuda()).cpu()
    assert (found - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", ["convolutions", "lm", "ecapa"])
def test_calibration_on_the_gpu_gives_the_same_plan(name):
    model, batch = models()[name]
    model.eval()
    moved = copy.deepcopy(model).cuda()
    plan = quantize(model, [batch], progress=False).plan
    other = quantize(moved, [batch.cuda()], progress=False).plan
    assert plan.layers.keys() == other.layers.keys()
    for layer, expected in plan.layers.items():
        for slot, found in other.layers[layer].inputs.items():
            wanted = expected.inputs[slot]
            assert found.high == pytest.approx(wanted.high, rel=0.02, abs=1e-6)


def test_checkpoint_moves_to_the_gpu(tmp_path):
    model, batch = models()["convolutions"]
    model.eval()
    path = tmp_path / "model.ckpt"
    fresh = copy.deepcopy(model).cuda()
    result = quantize(model, [batch], progress=False)
    save_quantized(model, path, result.plan)
    load_quantized(fresh, path)
    assert next(fresh.buffers()).is_cuda
    with torch.no_grad():
        found, expected = fresh(batch.cuda()).cpu(), model(batch)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_half_precision_runs(tmp_path):
    model, batch = models()["convolutions"]
    model.eval()
    quantize(model, [batch], progress=False)
    with torch.no_grad():
        expected = model(batch)
        found = model.cuda().half()(batch.cuda().half()).float().cpu()
    assert (found - expected).norm() < 0.05 * expected.norm()
