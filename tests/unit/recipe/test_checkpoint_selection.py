import pytest
import torch
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from speechbrain_stablequant.recipe.checkpoint_selection import (
    kept_weights,
    noted_keys,
)


class Holder:
    """The part of a Brain that is looked at."""

    test_only = False

    def __init__(self, folder):
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.norm = InputNormalization(norm_type="global")
        self.counter = EpochCounter(10)
        self.optimizer = torch.optim.Adam(self.linear.parameters())
        self.checkpointer = Checkpointer(
            folder,
            {
                "model": nn.Sequential(self.linear, self.bn),
                "normalizer": self.norm,
                "counter": self.counter,
                "optimizer": self.optimizer,
            },
        )

    def train(self, error):
        """Change everything that a checkpoint holds, and save one."""
        next(self.counter)
        features = torch.randn(8, 5, 4)
        self.norm(features, torch.ones(8), epoch=1)
        self.optimizer.zero_grad()
        self.bn(self.linear(features[:, 0])).square().sum().backward()
        self.optimizer.step()
        self.checkpointer.save_and_keep_only(
            meta={"error": error}, min_keys=["error"]
        )

    def state(self):
        """Return copies of all that may have changed."""
        states = [
            self.linear.state_dict(),
            self.bn.state_dict(),
            self.norm._statistics_dict(),
            {"epoch": self.counter.current},
            self.optimizer.state_dict()["state"][0],
        ]
        return [
            {k: torch.as_tensor(v).detach().clone() for k, v in state.items()}
            for state in states
        ]


def same(one, two) -> bool:
    return all(
        torch.equal(value, b[name])
        for a, b in zip(one, two)
        for name, value in a.items()
    )


@pytest.fixture
def trained(tmp_path):
    holder = Holder(tmp_path / "save")
    states = []
    with noted_keys(holder.checkpointer) as keys:
        for error in (3.0, 1.0, 2.0):
            holder.train(error)
            states.append(holder.state())
    return holder, states, keys


def test_keys_of_the_recipe_are_noted(trained):
    holder, _, keys = trained
    assert keys == {("min_key", "error")}
    assert "delete_checkpoints" not in vars(holder.checkpointer)


def test_only_modules_are_loaded_and_all_comes_back(trained, tmp_path):
    holder, (_, best, last), keys = trained
    weight = holder.linear.weight
    mean = holder.norm.glob_mean
    with kept_weights(holder, {}, keys, tmp_path) as found:
        assert found["value"] == 1.0
        now = holder.state()
        assert same(now[:3], best[:3])  # modules, statistics included
        assert same(now[3:], last[3:])  # counter and optimizer
        assert not same(now[:1], last[:1])
    assert same(holder.state(), last)
    assert holder.linear.weight is weight
    assert holder.norm.glob_mean is mean


def test_all_comes_back_after_an_error(trained, tmp_path):
    holder, (*_, last), keys = trained
    with (
        pytest.raises(RuntimeError, match="stop"),
        kept_weights(holder, {}, keys, tmp_path),
    ):
        raise RuntimeError("stop")
    assert same(holder.state(), last)


def test_without_a_checkpointer_there_is_nothing_to_say(tmp_path):
    holder = Holder(tmp_path / "save")
    holder.checkpointer = None
    with noted_keys(None) as keys:
        pass
    with kept_weights(holder, {}, keys, tmp_path) as found:
        assert found is None
