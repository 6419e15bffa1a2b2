"""Odd and ternary weights are integers like any others to the runtimes."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.runtime import runtime_report
from tests.unit.runtime.helpers import compare, quantized

FRAMES = torch.randn(2, 24, 12, generator=torch.Generator().manual_seed(1))
LONGER = torch.randn(3, 31, 12, generator=torch.Generator().manual_seed(2))
LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), FRAMES, LONGER),
    "conv1d": (
        lambda: nn.Conv1d(12, 8, 3, padding=1),
        FRAMES.transpose(1, 2),
        LONGER.transpose(1, 2),
    ),
}


def check(kind, runtime="openvino", **knobs):
    make, x, longer = LAYERS[kind]
    torch.manual_seed(3)
    model = nn.Sequential(make())
    with torch.no_grad():
        model[0].weight[1] = 0  # without a level for zero: a tiny scale
    quantized(model, x, **knobs)
    compare(model, [(x,), (longer,)], 1e-5, runtime=runtime)
    (row,) = runtime_report(model).layers
    return row


@pytest.mark.parametrize(
    ("bits", "levels"),
    [("W1A8", "odd"), ("W2A8", "odd"), ("W4A8", "odd"), ("W2A8", "ternary")],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_openvino_runs_them_in_int8(kind, bits, levels):
    row = check(kind, bits=bits, weight_levels=levels)
    assert row.precision == "int8"


@pytest.mark.parametrize("levels", ["odd", "ternary"])
@pytest.mark.parametrize("kind", LAYERS)
def test_onnx_runtime_runs_them_in_int8(kind, levels):
    row = check(kind, "onnx", bits="W2A8", weight_levels=levels)
    assert row.precision == "int8"


# Four odd bits reach from -15 to 15, which a 4-bit integer does not.
@pytest.mark.parametrize(
    ("bits", "kept"), [("W2", "int4"), ("W3", "int4"), ("W4", "int8")]
)
def test_odd_weights_alone(bits, kept):
    assert check("linear", bits=bits, weight_levels="odd").weights == kept
