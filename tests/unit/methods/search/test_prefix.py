"""The prefix cache replays exactly what would have been computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechbrain_stablequant.methods.search.prefix import PrefixCache


class Random(nn.Module):
    """Units joined at random: residual, in place, repeated, skipped."""

    def __init__(self, joins, size=4):
        super().__init__()
        self.units = nn.ModuleList(nn.Linear(size, size) for _ in joins)
        self.joins = joins
        self.ran = 0
        for unit in self.units:
            unit.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.ran += 1

    def forward(self, x):
        x = x.clone()
        for unit, join in zip(self.units, self.joins):
            if join == "residual":
                x = x + unit(x)
            elif join == "in place":
                x += unit(x)
            elif join == "change output":
                y = unit(x)
                x = y.relu_() + x
            elif join == "twice":
                x = unit(unit(x))
            elif join == "plain":
                x = unit(x)
        return x


JOINS = ["residual", "in place", "change output", "twice", "plain", "skip"]


@given(
    joins=st.lists(st.sampled_from(JOINS), min_size=1, max_size=6),
    inference=st.booleans(),
    num_bytes=st.sampled_from([0, 100, 1 << 20]),
)
def test_replay_equals_computing(joins, inference, num_bytes):
    torch.manual_seed(0)
    model, x = Random(joins), torch.randn(2, 4)
    names = [f"units.{i}" for i in range(len(joins))]
    mode = torch.inference_mode if inference else torch.no_grad
    with mode(), PrefixCache(model, names, num_bytes) as cache:
        with cache.record():
            recorded = model(x).clone()
        for name in [*names, *reversed(names), None]:
            unit = model.get_submodule(name) if name else model.units[0]
            weight = unit.weight.detach().clone()
            unit.weight.data.mul_(1.5)
            expected = model(x).clone()
            with cache.replay(before=name):
                assert torch.equal(model(x), expected)
            assert 0 <= cache.live_fraction(name) <= 1
            unit.weight.data.copy_(weight)
        assert torch.equal(model(x), recorded)


def forwards(model):
    return ["forward" in vars(m) for m in model.modules()]


class ChangesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        x = x * 1.0
        return self.last(self.block(x)) + x


def test_a_block_that_changes_its_input_is_computed():
    model, x = ChangesItsInput(), torch.randn(3, 4)
    with torch.no_grad(), PrefixCache(model, ["block", "last"]) as cache:
        with cache.record():
            expected = model(x)
        with cache.replay(before="last"):
            assert torch.equal(model(x), expected)


def test_without_memory_nothing_is_replayed():
    model, x = Random(["plain"] * 3), torch.randn(1, 4)
    names = ["units.0", "units.1", "units.2"]
    with torch.no_grad(), PrefixCache(model, names, 0) as cache:
        with cache.record():
            model(x)
        assert cache.live_fraction("units.2") == 1.0


def test_what_precedes_the_block_is_not_computed():
    model, x = (
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))),
        torch.ones(1, 4),
    )
    with torch.no_grad(), PrefixCache(model, ["0", "1", "2"]) as cache:
        with cache.record():
            expected = model(x)
        model[0].weight.fill_(9.0)
        with cache.replay(before="1"):
            assert torch.equal(model(x), expected)
        with cache.replay(before=None):
            assert not torch.equal(model(x), expected)
        assert cache.live_fraction("2") < 1
        assert cache.live_fraction(None) == 1
        assert cache.live_fraction("never called") == 1


def test_an_exception_leaves_no_trace():
    model = Random(["plain", "plain"])
    before = forwards(model)

    def record_a_wrong_size():
        with PrefixCache(model, ["units.0"]) as cache, cache.record():
            assert forwards(model) != before
            model(torch.randn(1, 5))

    with pytest.raises(RuntimeError, match="shapes"):
        record_a_wrong_size()
    assert forwards(model) == before


def test_a_forward_on_the_instance_comes_back():
    model = nn.Sequential(nn.Linear(2, 2))
    mine = model[0].forward
    model[0].forward = mine
    with PrefixCache(model, ["0"]):
        assert model[0].forward is not mine
    assert model[0].forward is mine
