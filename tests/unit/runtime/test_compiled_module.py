"""What runs compiled, what does not, and that nobody can tell by the result."""

import copy
import pickle

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from speechbrain_stablequant.runtime.compiled_module import relative_difference
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    compare,
    fast,
    quantized_pair,
    ran,
)

# -- identity --------------------------------------------------------------------


def test_modules_state_and_type_stay_what_they_were(pair):
    alias, kind = pair.a, type(pair.a)
    state = {k: v.clone() for k, v in pair.state_dict().items()}
    assert fast(pair) is pair
    with torch.no_grad():
        pair(X)
    assert pair.a is alias
    assert type(pair.a) is kind
    assert list(pair.state_dict()) == list(state)
    for name, value in pair.state_dict().items():
        assert torch.equal(value, state[name])


def test_an_alias_in_another_place_runs_compiled_too(pair):
    wrapper = nn.ModuleList([pair])
    scorer = {"lm": pair.a}
    fast(wrapper)
    with torch.no_grad():
        scorer["lm"](X)
    assert ran(wrapper)[0] == ["0.a"]


def test_decelerate_leaves_no_trace(pair):
    before = {n: dict(vars(m)) for n, m in pair.named_modules()}
    fast(pair)
    with torch.no_grad():
        pair(X)
    decelerate(pair)
    decelerate(pair)
    after = {n: dict(vars(m)) for n, m in pair.named_modules()}
    assert after == before


def test_a_forward_set_on_the_instance_is_compiled_and_comes_back(pair):
    def forward(x):
        return 3 * pair.both(x)

    pair.forward = forward
    compare(pair, [(X,), (LONGER,)])
    assert ran(pair) == ([""], {})
    decelerate(pair)
    assert vars(pair)["forward"] is forward


def test_accelerating_twice_keeps_the_last_settings(pair):
    fast(pair, threads=1)
    fast(pair, threads=2)
    assert runtime_report(pair).settings["threads"] == 2
    decelerate(pair)
    assert "forward" not in vars(pair)


def test_accelerating_a_part_and_then_the_whole(pair):
    model = nn.Sequential(pair)
    fast(pair)
    fast(model)
    decelerate(pair)
    decelerate(model)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, pickle.dumps],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_of_an_accelerated_model_says_what_to_do(pair, duplicate):
    fast(pair)
    with pytest.raises(StableQuantError, match="decelerate"):
        duplicate(pair)
    decelerate(pair)
    duplicate(pair)


# -- what is compiled --------------------------------------------------------------


def test_the_outermost_module_that_is_called_is_compiled(pair):
    model = nn.Sequential(nn.Sequential(pair), nn.ReLU()).eval()
    compare(model, [(X,), (LONGER,), (X[:1, :1],)])
    assert ran(model) == ([""], {})


class Branches(Pair):
    def forward(self, x):
        h = self.a(x)
        return self.b(h) if x.sum() > 0 else -2 * self.b(h)


class Items(Pair):
    def forward(self, x, lengths=None):
        return self.both(x)[:, : int((x[:, 0, 0] > 0).sum()) + 1]


class Lists(Pair):
    def forward(self, x):
        return self.both(x) * max(x[0, 0].tolist())


@pytest.mark.parametrize("cls", [Branches, Items])
def test_what_depends_on_values_is_left_to_the_layers_inside(cls):
    model = quantized_pair(cls)
    calls = [(X.abs(),), (-X.abs(),), (X,), (LONGER,)]
    compare(model, calls)
    done, failed = ran(model)
    assert set(done) == {"a", "b"}
    assert "depends on the input" in failed[""]
    assert runtime_report(model).num_int8 == 2


class Shapes(Pair):
    """Decides by shapes and by weights, which do not change."""

    def forward(self, x):
        if x.shape[-1] != 8 or not bool(self.a.bias.abs().sum() > 0):
            raise ValueError
        batch, time, _ = x.shape
        positions = torch.arange(time).float()[None, :, None]
        return (self.both(x) + positions).reshape(batch, time * 8)


def test_branches_on_shapes_and_weights_are_compiled():
    model = quantized_pair(Shapes)
    compare(model, [(X,), (LONGER,), (X[:1],)])
    assert ran(model) == ([""], {})


class BakedLength(Pair):
    def forward(self, x):
        half = len(range(x.shape[1])) // 2
        return self.both(x)[:, :half]


def test_a_length_in_the_trace_is_found_when_the_length_changes():
    model = quantized_pair(BakedLength)
    compare(model, [(X,), (LONGER,), (X,), (LONGER[:2],)])
    done, failed = ran(model)
    assert set(done) == {"", "a", "b"}
    assert "(3, 9, 8)" in failed[""]


class Describes(Pair):
    def forward(self, x):
        return self.both(x), int(x.shape[1]), x.shape[0], None, "y"


def test_numbers_in_the_result_are_right_after_a_change_of_length():
    model = quantized_pair(Describes)
    fast(model)
    with torch.no_grad():
        for x in (X, LONGER, X[:1]):
            y, time, batch, nothing, text = model(x)
            assert (time, batch) == (x.shape[1], x.shape[0])
            assert type(time) is type(batch) is int
            assert (nothing, text) == (None, "y")
            assert y.shape == x.shape


class Constants(Pair):
    def forward(self, x):
        return {"y": self.both(x), "none": None, "number": 3, "flag": True}


def test_values_in_the_result_that_never_change_are_kept():
    model = quantized_pair(Constants)
    compare(model, [(X,), (LONGER,)])
    result = model(X)
    assert {k: v for k, v in result.items() if k != "y"} == {
        "none": None,
        "number": 3,
        "flag": True,
    }
    assert result["flag"] is True
    assert ran(model) == ([""], {})


class NoTensors(Pair):
    def forward(self, x):
        self.seen = self.both(x)
        return None


def test_a_module_that_returns_no_tensor_is_not_compiled():
    model = quantized_pair(NoTensors)
    fast(model)
    with torch.no_grad():
        assert model(X) is None
        first = model.seen
        assert model(2 * X) is None
    assert not torch.equal(first, model.seen)
    assert "no tensor" in ran(model)[1][""]
    assert set(ran(model)[0]) == {"a", "b"}


# -- comparing results ---------------------------------------------------------------

INF = float("inf")


@pytest.mark.parametrize(
    ("result", "expected", "wanted"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 5.0),
        ([0.0, 5.0], [3.0, 4.0], pytest.approx(10**0.5 / 5)),
        ([0.0, 1e-8], [1e-9, 0.0], pytest.approx(1e-8, rel=0.01)),
        ([1.0, -INF], [1.0, -INF], 0.0),
        ([1.0, 2.0], [1.0, INF], INF),
        ([1.0, INF], [1.0, 2.0], INF),
        ([1.0, float("nan")], [1.0, 2.0], INF),
        ([1.0], [1.0, 2.0], INF),
    ],
)
def test_relative_difference(result, expected, wanted):
    pair = [torch.tensor(result)], [torch.tensor(expected)]
    assert relative_difference(*pair) == wanted


def test_relative_difference_of_another_number_of_results():
    assert relative_difference([X], [X, X]) == INF


class Threshold(nn.Module):
    """A branch that holds for short inputs only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        h = self.linear(x)
        return h * 5 if x.shape[1] > 20 else h


class CountedFrames(nn.Module):
    """A length that becomes a number of Python's."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        frames = torch.arange(int(x.shape[1])).float()
        return self.linear(x) + frames[None, :, None]


@pytest.mark.parametrize("cls", [Threshold, CountedFrames])
def test_lengths_that_decide_are_noticed(cls):
    torch.manual_seed(0)
    model = cls().eval()
    with torch.no_grad():
        quantize(model, [torch.randn(1, 9, 8)], progress=False)
        inputs = [torch.randn(1, time, 8) for time in (5, 9, 30, 6, 40)]
        expected = [model(x) for x in inputs]
        accelerate(model, threads=1, cache_folder=False)
        for x, wanted in zip(inputs, expected):
            assert torch.allclose(model(x), wanted, atol=1e-4)
