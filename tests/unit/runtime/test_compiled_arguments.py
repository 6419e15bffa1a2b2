"""Arguments and results of compiled modules, of any kind and shape."""

from collections import namedtuple

import pytest
import torch

from speechbrain_stablequant.runtime import compiled_module
from tests.unit.runtime.helpers import (
    LONGER,
    Pair,
    X,
    compare,
    fast,
    quantized_pair,
    ran,
)

Named = namedtuple("Named", ["x", "rest"])


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


def test_numbers_that_change_at_each_call_end_in_the_layers_inside(monkeypatch):
    monkeypatch.setattr(compiled_module, "MAX_VARIANTS", 3)
    model = quantized_pair(Scaled)
    factors = [0.5 + 0.25 * n for n in range(5)]
    compare(model, [(X, factor) for factor in factors])
    done, failed = ran(model)
    assert done.count("") == 3
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
