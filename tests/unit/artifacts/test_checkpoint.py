"""Checkpoints: bit-exact, small, and written all or not at all."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from speechbrain_stablequant import (
    QuantizationPlan,
    load_quantized,
    read_header,
    save_quantized,
)
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import QuantizedModule, quantizable_layers
from tests.samples import make_golden as golden

GOLDEN = golden.Path(golden.__file__).parent / "golden_v1"


@pytest.mark.parametrize("name", golden.MODELS)
def test_saved_and_loaded_bit_for_bit(name, tmp_path):
    model, plan = golden.quantized(name)
    path = save_quantized(model, tmp_path / "m.ckpt", plan, {"WER": 5.1})
    twin, _ = golden.build(name)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7.0)
    assert load_quantized(twin, path) is twin
    state = model.state_dict()
    assert set(twin.state_dict()) == set(state)
    assert all(torch.equal(v, state[k]) for k, v in twin.state_dict().items())
    x = golden.example(name)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    header = read_header(path)
    assert header["plan"] == plan
    assert header["extra"] == {"WER": 5.1}


@pytest.mark.parametrize("name", golden.MODELS)
def test_files_of_format_version_1_mean_what_they_meant(name):
    expected = load_file(GOLDEN / f"{name}.io.safetensors")
    model, _ = golden.build(name)
    load_quantized(model, GOLDEN / f"{name}.ckpt")
    found = golden.integers(model)
    assert set(found) == set(expected) - {"x", "y"}
    assert all(torch.equal(v, expected[k]) for k, v in found.items())
    with torch.no_grad():
        y = model(expected["x"])
    torch.testing.assert_close(y, expected["y"], rtol=1e-6, atol=1e-6)


def test_golden_files_are_never_rewritten(tmp_path):
    golden.main(tmp_path)
    with pytest.raises(SystemExit, match="never rewritten"):
        golden.main(tmp_path)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        model, plan = golden.quantized("linear_w4")
        save_quantized(model, path, plan)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, plan = golden.quantized("linear_w8")
    path = save_quantized(model, tmp_path / "m.ckpt", plan)
    old = path.read_bytes()

    def full_disk(handle):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_quantized(model, path, plan, {"other": 1})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


def test_a_float_module_is_not_saved(tmp_path):
    model, _ = golden.build("linear_w8")
    with pytest.raises(CheckpointError, match="no quantized layer"):
        save_quantized(model, tmp_path / "m", QuantizationPlan({}))
    assert not list(tmp_path.iterdir())


def test_a_plan_for_other_layers_is_not_saved(tmp_path):
    model, plan = golden.quantized("linear_w8")
    for wrong in (None, QuantizationPlan({})):
        with pytest.raises(CheckpointError, match="plan"):
            save_quantized(model, tmp_path / "m", wrong)


@pytest.mark.filterwarnings("ignore:Detected pickle")
def test_stock_torch_refuses_our_file():
    refused = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError)
    for weights_only in (True, False):
        with pytest.raises(refused):
            torch.load(GOLDEN / "linear_w8.ckpt", weights_only=weights_only)


def test_weight_norm_is_fused_when_loading(tmp_path):
    def make():
        return nn.Sequential(nn.utils.weight_norm(nn.Conv1d(4, 4, 3)))

    model = make()
    conversion = golden.Conversion(model)
    plan = QuantizationPlan({"0": LayerPlan(QuantizationScheme(4))})
    conversion.apply_plan(plan)
    path = save_quantized(model, tmp_path / "m.ckpt", plan)
    twin = load_quantized(make(), path)
    x = torch.randn(1, 4, 9)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(8, 0.26), (4, 0.14)])
def test_wav2vec2_base_shrinks_on_disk(bits, share, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config())
    float_path = tmp_path / "float.ckpt"
    torch.save(model.state_dict(), float_path)
    conversion = golden.Conversion(model)
    scheme = QuantizationScheme(bits)
    plan = QuantizationPlan(
        {
            name: LayerPlan(scheme, weight_observer="max")
            for name, _, _ in quantizable_layers(model)
        }
    )
    conversion.apply_plan(plan)
    path = save_quantized(model, tmp_path / "m.ckpt", plan)
    assert path.stat().st_size <= share * float_path.stat().st_size
    assert any(isinstance(m, QuantizedModule) for m in model.modules())
