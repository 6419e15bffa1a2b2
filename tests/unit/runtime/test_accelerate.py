"""`accelerate`: its options, layers that must run in int8, several threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from speechbrain_stablequant.errors import (
    ExecutionError,
    KnobError,
    PlanError,
)
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from tests.unit.runtime import helpers
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    compare,
    fast,
    ran,
)

# -- proof of int8 -------------------------------------------------------------------


class Stubborn(nn.Linear):
    """A linear layer that no runtime can take."""

    def forward(self, x):
        y = super().forward(x)
        return y if float(x.sum()) > 1e9 else y.clone()


def stubborn():
    model = nn.Sequential(nn.Linear(8, 8), Stubborn(8, 8), nn.ReLU())
    return helpers.quantized(model)


def test_a_planned_layer_that_cannot_run_in_int8_is_an_error_at_each_call():
    model = stubborn()
    fast(model)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(ExecutionError) as caught:
            model(X)
        assert "'1'" in str(caught.value)
        assert "allow_float" in str(caught.value)
        assert "depends on the input" in str(caught.value)


@pytest.mark.parametrize("allowed", ["1", ["0", "[1-9]"], "*"])
def test_layers_that_may_run_in_float_are_said_to(allowed):
    model = stubborn()
    compare(model, [(X,), (LONGER,)], allow_float=allowed)
    report = runtime_report(model)
    assert {r.name: r.precision for r in report.layers} == {
        "0": "int8",
        "1": "reference",
    }
    assert report.summary() == (
        "1 of 2 layers executed in int8, 1 in reference"
    )


def test_a_pattern_for_another_layer_allows_nothing():
    model = fast(stubborn(), allow_float=["0", "2*"])
    with torch.no_grad(), pytest.raises(ExecutionError, match="'1'"):
        model(X)


# -- several threads -----------------------------------------------------------------


def test_threads_get_what_a_single_one_gets(pair):
    inputs = [torch.randn(1 + n % 3, 1 + n % 7, 8) for n in range(48)]
    with torch.no_grad():
        expected = [pair(x) for x in inputs]
    fast(pair)
    barrier = threading.Barrier(8)

    def work(first):
        barrier.wait()
        with torch.no_grad():
            return [pair(x) for x in inputs[first::8]]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for first, found in enumerate(results):
        for result, wanted in zip(found, expected[first::8]):
            assert helpers.distance(result, wanted) < 1e-5
    assert ran(pair) == ([""], {})


def test_threads_that_compile_modules_with_a_common_layer(pair):
    models = [nn.Sequential(pair, nn.Sigmoid()).eval() for _ in range(4)]
    everything = nn.ModuleList(models)
    with torch.no_grad():
        expected = models[0](X)
    fast(everything)
    barrier = threading.Barrier(4)

    def work(model):
        barrier.wait()
        with torch.no_grad():
            return model(X), model(LONGER)

    with ThreadPoolExecutor(4) as pool:
        for result, _ in pool.map(work, models):
            assert helpers.distance(result, expected) < 1e-5
    decelerate(everything)
    for layer in (pair.a, pair.b):
        assert layer._weight_cache is None
        assert "quantize_input" not in vars(layer)


# -- bad arguments -------------------------------------------------------------------


def test_a_model_without_quantized_layers_is_an_error():
    with pytest.raises(PlanError, match="quantize it"):
        accelerate(Pair())


@pytest.mark.parametrize("thing", [None, 3, "model", Pair, [Pair()]])
def test_what_is_no_model_is_an_error(thing):
    with pytest.raises(KnobError, match="give a torch module"):
        accelerate(thing)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "openvin"}, "openvino"),
        ({"runtime": None}, "unknown"),
        ({"precision": "bf61"}, "bf16"),
        ({"precision": "int8"}, "unknown"),
        ({"threads": 0}, "threads is 0.*at least 1"),
        ({"threads": "2"}, "threads is .2.*whole number"),
        ({"threads": True}, "threads is True.*whole number"),
    ],
)
def test_a_bad_option_is_named_and_changes_nothing(pair, options, words):
    fast(pair)
    with pytest.raises(KnobError, match=words) as caught:
        fast(pair, **options)
    assert next(iter(options)) in str(caught.value)
    with torch.no_grad():
        pair(X)
    assert ran(pair) == ([""], {})


def test_reference_is_plain_torch(pair):
    fast(pair)
    assert fast(pair, runtime="reference") is pair
    assert "forward" not in vars(pair)
    with pytest.raises(PlanError, match="not accelerated"):
        runtime_report(pair)
