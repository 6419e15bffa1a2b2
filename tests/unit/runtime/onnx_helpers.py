"""Calls of models on ONNX Runtime, compared with plain torch."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from speechbrain_stablequant.runtime.compiled_module import relative_difference

onnx = pytest.importorskip("onnx")


def prepared(model, call, bits="W8A8", **knobs):
    """Return a model quantized with one call as calibration."""
    knobs = {"observer": "max", "method": "uniform", **knobs}
    quantize(
        model.eval(),
        [call],
        forward=lambda m, args: m(*args),
        bits=bits,
        progress=False,
        **knobs,
    )
    return model


def difference(result, expected):
    """Compare the first tensors of two results."""
    while not torch.is_tensor(result):
        result, expected = result[0], expected[0]
    return relative_difference([result], [expected])


@torch.no_grad()
def run(model, calls, runtime="onnx", **options):
    """Return results of accelerated calls, and the report."""
    accelerate(model, runtime, **{"cache_folder": False, **options})
    results = [model(*args) for args in calls]
    report = runtime_report(model)
    decelerate(model)
    return results, report


@torch.no_grad()
def agree(model, calls, tolerance=1e-4, **options):
    """Run calls on the runtime; return the report if results agree."""
    expected = [model(*args) for args in calls]
    results, report = run(model, calls, **options)
    assert not [u.failure for u in report.units if u.failure]
    for result, wanted in zip(results, expected):
        assert difference(result, wanted) < tolerance
    return report


def kernels(report):
    return {row.name: row.kernel for row in report.layers}


def integers(path):
    """Return the constants of a file by name."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
    }


def two_linear():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
