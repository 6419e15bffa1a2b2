"""Graphs of modules that plain Python state decides about."""

import copy
import pickle

import pytest
import torch
from torch import nn

from speechbrain_stablequant.errors import RuntimeConversionError
from speechbrain_stablequant.runtime import IN_PARTS, decelerate, runtime_report
from speechbrain_stablequant.runtime.compiled_module import MAX_VARIANTS
from speechbrain_stablequant.runtime.state import execution_states
from speechbrain_stablequant.runtime.tracing import inert
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    distance,
    fast,
    quantized,
)

RUNTIMES = ("openvino", "onnx")


class Switched(Pair):
    """Computes what its factor says; a list has one for each row."""

    factor = 2.0

    def execution_state(self):
        return IN_PARTS if isinstance(self.factor, list) else self.factor

    def forward(self, x):
        y, factor = self.both(x), self.factor
        if isinstance(factor, list):
            rows = zip(y, factor)
            return torch.stack([row * own for row, own in rows])
        if factor is True:
            return y + 7
        return y * factor if isinstance(factor, float) else y - factor


class Chain(nn.Module):
    """Holds modules with state, and knows nothing about it."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return torch.tanh(x)


def chain(cls=Switched, count=1):
    torch.manual_seed(0)
    model = quantized(Chain(*(cls() for _ in range(count))))
    return model.requires_grad_(False)


@torch.no_grad()
def check(call, x=X):
    """Compare an accelerated call with plain torch; return the result."""
    with inert():
        expected = call(x)
    found = call(x)
    assert distance(found, expected) < 1e-5
    return found


def units(model):
    """Return the names of what was compiled, and why the rest was not."""
    found = runtime_report(model).units
    done = [unit.name for unit in found if unit.failure is None]
    return done, {u.name: u.failure for u in found if u.failure is not None}


ENTRIES = {
    "container": lambda model: model,
    "container's forward": lambda model: model.forward,
    "module": lambda model: model.parts[0],
    "module's forward": lambda model: model.parts[0].forward,
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_each_state_has_its_graph(runtime, entry):
    model = fast(chain(), runtime=runtime)
    call, name = ENTRIES[entry](model), "" if "con" in entry else "parts.0"
    for factor in (2.0, -3.0, 2.0, -3.0):
        model.parts[0].factor = factor
        check(call)
        check(call, LONGER)
    assert units(model) == ([name] * 2, {})


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_state_without_graph_leaves_the_work_to_what_is_inside(
    runtime, entry
):
    model = fast(chain(), runtime=runtime)
    call, name = ENTRIES[entry](model), "" if "con" in entry else "parts.0"
    for factor in ([1.0, -2.0], [3.0, 4.0], 2.0, [0.5, 0.25], 2.0):
        model.parts[0].factor = factor
        check(call)
    done, failed = units(model)
    assert sorted(done) == sorted([name, "parts.0.a", "parts.0.b"])
    assert failed == {}
    assert runtime_report(model).num_int8 == 2


def test_equal_states_of_different_types_are_told_apart():
    model = fast(chain())
    for factor in (1, 1.0, True):
        model.parts[0].factor = factor
        check(model)
    assert units(model)[0] == [""] * 3


def test_states_are_those_of_their_modules():
    model = fast(chain(count=2))
    results = []
    for factors in ((2.0, 5), (5, 2.0), (2.0, 2.0)):
        for part, factor in zip(model.parts, factors):
            part.factor = factor
        results.append(check(model))
    for n, result in enumerate(results):
        assert distance(result, results[n - 1]) > 0.01
    assert units(model)[0] == [""] * 3


def test_a_module_without_weights_may_decide():
    class Sign(nn.Module):
        sign = 1

        def execution_state(self):
            return self.sign

        def forward(self, x):
            return x * self.sign

    model = fast(Chain(chain(Pair), sign := Sign()).eval())
    first = check(model)
    sign.sign = -1
    assert distance(check(model), -first) < 1e-5


def test_states_without_end_end_in_the_layers_inside():
    model = fast(chain())
    for step in range(MAX_VARIANTS + 2):
        model.parts[0].factor = 1.0 + step
        check(model)
    done, failed = units(model)
    assert done.count("") == MAX_VARIANTS
    assert {"parts.0"} <= set(done)
    assert "state" in failed[""]


def test_loading_weights_concerns_the_graphs_of_all_states():
    model, other = fast(chain()), chain()
    for part in other.parts.modules():
        if isinstance(part, nn.Linear):
            part.bias.add_(1.0)
    for load in (False, True):
        if load:
            model.load_state_dict(other.state_dict())
        for factor in (2.0, -3.0):
            model.parts[0].factor = factor
            check(model)
    assert units(model)[0] == [""] * 4


class Sets(Switched):
    """Changes what others find, which a graph would not."""

    def forward(self, x, factor=5.0):
        self.factor = factor
        return super().forward(x)


def test_a_forward_that_changes_a_state_is_left_to_the_layers_inside():
    model = fast(chain(Sets))
    part = model.parts[0]
    with torch.no_grad():
        for factor in (-7.0, 3.0):
            part(X, factor)
            assert part.factor == factor
            check(lambda x, factor=factor: part(x, factor))
    done, failed = units(model)
    assert sorted(done) == ["parts.0.a", "parts.0.b"]
    assert "changes an execution_state" in failed["parts.0"]


class Odd(Switched):
    """Says something that cannot be compared with the next process."""

    def execution_state(self):
        return ("x", (object(),))


def test_states_that_are_no_plain_data_are_named():
    model = chain(Odd)
    with pytest.raises(
        RuntimeConversionError, match="Odd returned .* type object"
    ):
        execution_states(model.parts)
    fast(model)
    for factor in (2.0, -3.0):
        model.parts[0].factor = factor
        check(model)
    done, failed = units(model)
    assert sorted(done) == ["parts.0.a", "parts.0.b"]
    assert set(failed) == {"", "parts.0"}
    assert "return numbers, texts" in failed[""]


HIDDEN = {"factor": 2.0}


class Hidden(Switched):
    """Keeps its state where nobody else would look for it."""

    def execution_state(self):
        return HIDDEN["factor"]

    def forward(self, x):
        return self.both(x) * HIDDEN["factor"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_states_on_disk(runtime, tmp_path):
    """A later start finds the graph of its state, and of no other."""
    for factor, cached in ((2.0, False), (-3.0, False), (2.0, True)):
        HIDDEN["factor"] = factor
        model = fast(chain(Hidden), runtime=runtime, cache_folder=tmp_path)
        check(model)
        assert [u.cached for u in runtime_report(model).units] == [cached]
        decelerate(model)


def test_the_mark_stays_the_same_object():
    for again in (
        copy.deepcopy(IN_PARTS),
        copy.copy(IN_PARTS),
        pickle.loads(pickle.dumps(IN_PARTS)),
    ):
        assert again is IN_PARTS
