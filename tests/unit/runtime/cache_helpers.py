"""Starting a model with a cache, as a new process would."""

import torch

from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from tests.unit.runtime.helpers import X


def start(model, folder, x=X, **options):
    """Accelerate as a new process would; return the result and the units."""
    decelerate(model)
    accelerate(model, cache_folder=folder, **options)
    with torch.no_grad():
        result = model(x)
    units = runtime_report(model).units
    assert all(unit.failure is None for unit in units)
    return result, units


def was_cached(model, folder, **options):
    return start(model, folder, **options)[1][0].cached


def files(folder, ending=""):
    return sorted(folder.glob(f"*{ending}"))


def change_bias(model):
    with torch.no_grad():
        model.b.bias[2] += 1e-3
