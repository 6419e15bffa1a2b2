"""Small quantized models, run on a runtime and by plain torch."""

import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)

X = torch.linspace(-3, 4, 2 * 5 * 8).reshape(2, 5, 8).sin() * 2
LONGER = torch.linspace(-7, 7, 3 * 9 * 8).reshape(3, 9, 8).cos() * 2


class Pair(nn.Module):
    """Two linear layers; what happens with them is up to subclasses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def both(self, x):
        return self.b(torch.relu(self.a(x)))

    def forward(self, x):
        return self.both(x)


def quantized(model, batch=X, forward=None, **knobs):
    """Return a model in evaluation mode with quantized layers."""
    knobs = {"bits": "W8A8", "observer": "max", **knobs}
    quantize(model.eval(), [batch], forward, progress=False, **knobs)
    return model


def quantized_pair(cls=Pair, **knobs):
    """Return a `Pair` of a class; both layers see the same calibration."""
    return quantized(
        cls(), X, lambda model, x: Pair.both(model, x), **knobs
    ).requires_grad_(False)


def fast(model, **options):
    """Accelerate with neither a cache nor luck."""
    return accelerate(model, **{"cache_folder": False, **options})


def tensors(result):
    """Return all tensors of a nested result, in order."""
    return [
        leaf
        for leaf in torch.utils._pytree.tree_leaves(result)
        if isinstance(leaf, torch.Tensor)
    ]


def distance(result, expected):
    """Return the largest relative difference of two nested results."""
    result, expected = tensors(result), tensors(expected)
    assert len(result) == len(expected) > 0
    worst = 0.0
    for one, other in zip(result, expected):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        finite = torch.isfinite(other)
        assert torch.equal(one[~finite].isnan(), other[~finite].isnan())
        one, other = one[finite].double(), other[finite].double()
        size = max(float(other.norm()), 1e-9)
        worst = max(worst, float((one - other).norm()) / size)
    return worst


@torch.no_grad()
def compare(model, calls, tolerance=1e-5, call=None, **options):
    """Run calls by plain torch, then accelerated; return the distances."""
    call = call or (lambda model, *args, **kwargs: model(*args, **kwargs))
    decelerate(model)
    expected = [call(model, *args) for args in calls]
    fast(model, **options)
    for args, wanted in zip(calls, expected):
        assert distance(call(model, *args), wanted) < tolerance


def ran(model):
    """Return the names of what was compiled, and why the rest was not."""
    units = runtime_report(model).units
    done = [unit.name for unit in units if unit.failure is None]
    return done, {u.name: u.failure for u in units if u.failure is not None}
