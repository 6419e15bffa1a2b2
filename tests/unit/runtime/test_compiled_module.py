"""What runs compiled, what does not, and that nobody can tell by the result."""

import copy
import pickle
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import (
    ExecutionError,
    KnobError,
    PlanError,
    StableQuantError,
)
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    runtime_report,
)
from speechbrain_stablequant.runtime.compiled_module import (
    MAX_VARIANTS,
    relative_difference,
)
from tests.unit.runtime import helpers
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    compare,
    fast,
    quantized_pair,
)

Named = namedtuple("Named", ["x", "rest"])


def ran(model):
    """Return the names of what was compiled, and why the rest was not."""
    units = runtime_report(model).units
    done = [unit.name for unit in units if unit.failure is None]
    return done, {u.name: u.failure for u in units if u.failure is not None}


@pytest.fixture
def pair():
    return quantized_pair()


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


# -- arguments ---------------------------------------------------------------------


class Nested(Pair):
    def forward(self, batch, *, scale=None, extra=(), named=None):
        y = self.both(batch["x"])
        for item in extra:
            y = y + item[0]
        if named is not None:
            y = y * named.x + sum(named.rest)
        if scale is not None:
            y = y * scale
        return Named(y, [batch["x"].mean(), (y.sum(),)])


def test_tensors_in_dicts_lists_keywords_and_named_tuples():
    model = quantized_pair(Nested)
    calls = [
        ({"x": X}, {}),
        ({"x": X}, {"scale": torch.tensor(2.0)}),
        ({"x": LONGER}, {"scale": torch.tensor(0.5)}),
        ({"x": X}, {"extra": [(X,), (X + 1, None)]}),
        ({"x": LONGER}, {"extra": [(LONGER,), (LONGER + 1, None)]}),
        ({"x": X}, {"named": Named(X, [X, 1.0])}),
    ]
    compare(model, calls, call=lambda m, batch, options: m(batch, **options))
    assert ran(model) == ([""] * 4, {})
    assert isinstance(model({"x": X}), Named)


class Same(Pair):
    def forward(self, query, key):
        y = self.both(query) @ self.both(key).transpose(1, 2)
        return y * 2 if query is key else y


def test_the_same_tensor_twice_is_another_way_of_calling():
    model = quantized_pair(Same)
    compare(model, [(X, X), (X, X.clone()), (LONGER, LONGER), (X, X)])
    assert ran(model)[1] == {}


class Scaled(Pair):
    def forward(self, x, factor):
        y = self.both(x)
        if factor is True:
            return y * 7
        return y // factor if isinstance(factor, int) else y / factor


def test_equal_numbers_of_different_types_are_told_apart():
    model = quantized_pair(Scaled)
    compare(model, [(X, 1), (X, 1.0), (X, True), (X, False + 1)])


def test_numbers_that_change_at_each_call_end_in_the_layers_inside():
    model = quantized_pair(Scaled)
    factors = [0.5 + 0.25 * n for n in range(MAX_VARIANTS + 2)]
    compare(model, [(X, factor) for factor in factors])
    done, failed = ran(model)
    assert done.count("") == MAX_VARIANTS
    assert {"a", "b"} <= set(done)
    assert "number" in failed[""]


class Opaque(Pair):
    def forward(self, x, box):
        return self.both(x) * box.factor


class Box:
    factor = 2.0


def test_an_object_as_argument_is_left_to_the_layers_inside():
    model = quantized_pair(Opaque)
    compare(model, [(X, Box()), (LONGER, Box())])
    assert "Box" in ran(model)[1][""]
    assert set(ran(model)[0]) == {"a", "b"}


@pytest.mark.parametrize(
    "x",
    [
        X.transpose(0, 1),
        X.expand(4, 2, 5, 8)[:, 1],
        X[:, ::2].flip(1),
        X[None, None],
    ],
    ids=["transposed", "expanded", "strided", "deep"],
)
def test_layout_and_rank_of_an_input_do_not_matter(pair, x):
    compare(pair, [(X,), (x,)])
    assert ran(pair)[1] == {}


class FirstUnused(Pair):
    def forward(self, unused, x, other, also):
        return self.both(x) + also, x, x


def test_unused_inputs_and_inputs_that_are_returned():
    model = quantized_pair(FirstUnused)
    other = torch.tensor([[True]])
    calls = [
        (torch.ones(1), X, other, X),
        (torch.ones(4), LONGER, other, LONGER[:, :1]),
        (torch.ones(2), X[:1], other, X),
    ]
    compare(model, calls)
    assert ran(model)[1] == {}


class InPlace(Pair):
    def forward(self, x):
        y = self.both(x)
        y[:, 0] = 1
        y += x
        return y.masked_fill(x > 1, float("-inf"))


def test_results_with_infinities_and_in_place_steps():
    model = quantized_pair(InPlace)
    compare(model, [(X,), (LONGER,)])
    assert ran(model) == ([""], {})


def test_integers_and_booleans_come_back_as_such():
    class Typed(Pair):
        def forward(self, x):
            y = self.both(x)
            return y.argmax(-1), y > 0, y.double(), y.argmax(-1).int()

    model = quantized_pair(Typed)
    compare(model, [(X,), (LONGER,)])
    assert ran(model) == ([""], {})


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_empty_inputs_give_what_torch_gives(shape):
    class Mean(Pair):
        def forward(self, x):
            return self.both(x).mean(1)

    model = quantized_pair(Mean)
    empty = torch.zeros(shape)
    expected = model(empty)
    fast(model)
    with torch.no_grad():
        model(X)
        result = model(empty)
        assert torch.equal(result.isnan(), expected.isnan())
        assert result.shape == expected.shape
    assert ran(model)[1] == {}


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
        ({"threads": 0}, "from 1 on"),
        ({"threads": "2"}, "from 1 on"),
        ({"threads": True}, "from 1 on"),
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
