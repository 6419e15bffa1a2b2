"""ONNX files: the integers of the layers, names, any size."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.runtime import (
    export_onnx,
)
from tests.unit.runtime.onnx_helpers import (
    integers,
    prepared,
    two_linear,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MASKS = torch.tensor([1.0, 0.7, 0.4])


@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4"])
def test_a_file_holds_the_very_integers(tmp_path, bits):
    x = torch.randn(4, 64)
    model = prepared(two_linear(), (x,), bits)
    export_onnx(model, x, tmp_path / "model.onnx")
    found = integers(tmp_path / "model.onnx")
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        wanted, scale, _ = layer.quantized_weight("weight")
        values = found.get(f"{name}.weight")
        if values is None:  # kernels for 4 bits want it transposed
            values = found[f"{name}.weight/transposed"].T
        assert torch.equal(torch.from_numpy(values.astype("int8")), wanted)
        assert found[f"{name}.weight/scale"].tolist() == scale[:, 0].tolist()


def test_a_file_holds_the_integers_of_a_convolution(tmp_path):
    x = torch.randn(2, 6, 20)
    model = prepared(nn.Conv1d(6, 8, 3), (x,))
    export_onnx(model, (x,), tmp_path / "model.onnx")
    found = integers(tmp_path / "model.onnx")["weight"]
    wanted = model.quantized_weight("weight").values.reshape(8, 6, 3)
    wanted = wanted.transpose(1, 2).flatten(1)  # kernel before channels
    assert torch.equal(torch.tensor(found), wanted)


@pytest.mark.parametrize(("bits", "width"), [("W8A8", 8), ("W4A8", 4)])
def test_a_file_is_as_small_as_its_integers(tmp_path, bits, width):
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    x = torch.randn(4, 512)
    prepared(model, (x,), bits)
    path, num_bytes = export_onnx(model, x, tmp_path / "deep" / "model.onnx")
    assert path.stat().st_size == num_bytes
    floats = 2 * 4 * 2 * 512  # biases and scales
    assert num_bytes < 1.02 * (2 * 512 * 512 * width / 8 + floats)


def test_a_file_runs_elsewhere_with_names_and_any_size(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, features, weights):
            return {"out": self.layer(features) * weights}

    x, w = torch.randn(2, 16), torch.rand(2, 1)
    model = prepared(Masked(), (x, w))
    inputs = {"weights": w, "features": x}
    path, _ = export_onnx(model, inputs, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    x, w = torch.randn(7, 16), torch.rand(7, 1)
    (result,) = session.run(None, {"features": x.numpy(), "weights": w.numpy()})
    with torch.no_grad():
        expected = model(x, w)["out"]
    torch.testing.assert_close(torch.from_numpy(result), expected)
