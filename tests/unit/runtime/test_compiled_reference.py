"""When a compiled module has to run as plain torch."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import ExecutionError
from speechbrain_stablequant.runtime import decelerate
from tests.unit.runtime import helpers
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    compare,
    fast,
    quantized_pair,
    ran,
)

# -- when plain torch has to run -----------------------------------------------------


def test_training_mode_runs_plain_torch():
    model = helpers.quantized(nn.Sequential(Pair(), nn.Dropout(0.5)))
    fast(model)
    with torch.no_grad():
        model.train()
        assert 0.2 < float((model(X) == 0).float().mean()) < 0.8
        assert ran(model) == ([], {})
        model.eval()
        assert not (model(X) == 0).all()
        assert ran(model) == ([""], {})
        model[1].train()  # only a part, and after the model was compiled
        assert 0.2 < float((model(X) == 0).float().mean()) < 0.8


def test_gradients_flow_through_plain_torch(pair):
    fast(pair)
    x = X.clone().requires_grad_()
    pair(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0
    assert ran(pair) == ([], {})
    with torch.no_grad():
        pair(x)
    assert ran(pair) == ([""], {})


def test_a_loaded_state_is_what_runs(pair):
    other = quantized_pair()
    compare(pair, [(X,)])
    pair.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert helpers.distance(pair(X), other(X)) < 1e-5


def test_a_changed_tensor_is_what_runs(pair):
    compare(pair, [(X,)])
    with torch.no_grad():
        pair.b.bias.add_(10)
        changed = pair(X)
        assert helpers.distance(changed, decelerate(pair)(X)) < 1e-5


def test_a_restored_model_runs_in_float_and_another_plan_as_planned():
    model = Pair().eval().requires_grad_(False)
    expected = model(X)
    for bits in ("W8A8", "W4A8", "W2A8"):
        result = quantize(model, [X], bits=bits, progress=False)
        if bits == "W8A8":
            fast(model)
        wanted = model(X)
        assert helpers.distance(decelerate(model)(X), wanted) < 1e-5
        fast(model)
        assert helpers.distance(model(X), wanted) < 1e-5
        result.restore()
        assert torch.equal(model(X), expected)
    decelerate(model)


def test_another_input_range_is_what_runs(pair):
    compare(pair, [(X,)])
    plan = helpers.quantized(nn.Sequential(Pair()), 9 * X)[0].a
    for part in ("scale", "zero_point"):
        pair.a._buffers[f"input_{part}"] = plan._buffers[f"input_{part}"]
    with torch.no_grad():
        result = pair(X)
        assert helpers.distance(result, decelerate(pair)(X)) < 1e-5


def test_a_call_that_torch_refuses_does_no_harm(pair):
    compare(pair, [(X,)])
    with torch.no_grad():
        for bad in (X[..., :7], X.double(), X[..., None]):
            with pytest.raises(RuntimeError) as caught:
                pair(bad)
            assert not isinstance(caught.value, ExecutionError)
        with pytest.raises(TypeError):
            pair(X, X)
    compare(pair, [(X,), (LONGER,)])
    assert ran(pair) == ([""], {})


class Autocast(Pair):
    def forward(self, query, key):
        y = torch.tanh(self.both(query) + key)
        return y * 2 if query is key else y


def test_autocast_leaves_the_precision_to_the_runtime():
    model = quantized_pair(Autocast)
    expected = model(X, X)
    fast(model)
    low = X.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert helpers.distance(model(X, X), expected) < 1e-5
        near = model(low, low)
        assert torch.is_autocast_enabled("cpu")
    assert helpers.distance(near, expected) < 0.03
    assert ran(model) == ([""], {})


def test_inference_mode(pair):
    expected = pair(X)
    fast(pair)
    with torch.inference_mode():
        result = pair(X)
        pair(result)
    assert helpers.distance(result, expected) < 1e-5
    with torch.no_grad():
        assert helpers.distance(pair(X), expected) < 1e-5
    assert ran(pair) == ([""], {})
