"""Low-bit weights from a plan into a file and back, at every kind of levels."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from speechbrain_stablequant import (
    QuantizationPlan,
    load_quantized,
    save_quantized,
)
from speechbrain_stablequant.artifacts import checkpoint_reader
from speechbrain_stablequant.core.packing import packed_num_bytes
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import (
    Conversion,
    kind_of,
    quantizable_layers,
)
from tests.samples import make_golden as golden

LAYERS = {**golden.LAYERS, "linear": golden.linear}
WIDTHS = {
    **{f"int{bits}": QuantizationScheme(bits) for bits in range(1, 5)},
    **{
        f"odd{bits}": QuantizationScheme(bits, levels="odd")
        for bits in range(1, 5)
    },
    "ternary": QuantizationScheme(2, levels="ternary"),
}


def build(name, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(LAYERS[name]()).eval()


def converted(name, scheme):
    model = build(name)
    conversion = Conversion(model)
    plan = QuantizationPlan(
        {
            layer: LayerPlan(
                scheme,
                kind_of(module),
                inputs=dict.fromkeys(cls.input_names, golden.INPUT),
            )
            for layer, module, cls in quantizable_layers(model)
        }
    )
    conversion.apply_plan(plan)
    return model, plan


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_saved_and_loaded_bit_for_bit(name, width, tmp_path):
    scheme = WIDTHS[width]
    model, plan = converted(name, scheme)
    path = save_quantized(model, tmp_path / "m.ckpt", plan)
    twin = load_quantized(build(name, seed=2), path)
    x = golden.example(name)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    integers = golden.integers(model)
    assert set(golden.integers(twin)) == set(integers)
    assert all(
        torch.equal(v, integers[k]) for k, v in golden.integers(twin).items()
    )
    shapes = [v.shape for k, v in integers.items() if k.endswith("values")]
    stored = sum(
        tensor.numel() * tensor.element_size()
        for key, tensor in load_file(path).items()
        if key.endswith(("_packed", "_scale"))
    )
    assert stored == sum(packed_num_bytes(s, scheme) for s in shapes)


def test_a_file_of_bytes_that_are_not_ternary_is_refused(tmp_path):
    model, plan = converted("linear", WIDTHS["ternary"])
    path = save_quantized(model, tmp_path / "hub.ckpt", plan)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    data = load_file(path)
    data["0.0.weight_packed"].view(torch.uint8)[2, 1] = 243
    header["sha256"] = checkpoint_reader.content_digest(data, header)
    save_file(data, path, header)
    twin = build("linear", seed=2)
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"hub\.ckpt.*packed.*243"):
        load_quantized(twin, path)
    assert all(torch.equal(v, before[k]) for k, v in twin.state_dict().items())


def test_levels_that_the_file_was_not_written_with_are_refused(tmp_path):
    model, plan = converted("linear", WIDTHS["odd2"])
    path = save_quantized(model, tmp_path / "hub.ckpt", plan)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    content = json.loads(header["plan"])
    for layer in content["layers"].values():
        layer["weight"]["levels"] = "integer"
    header["plan"] = json.dumps(content)
    data = load_file(path)
    header["sha256"] = checkpoint_reader.content_digest(data, header)
    save_file(data, path, header)
    # Codes 0 to 3 as integers are -2 to 1, and -2 is outside the narrow range.
    with pytest.raises(CheckpointError, match="-2"):
        load_quantized(build("linear", seed=2), path)
