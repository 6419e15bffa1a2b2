"""Learning rates of any optimizers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.methods.training.layers import (
    make_trainable,
    step_parameters,
)
from speechbrain_stablequant.methods.training.learning_rates import Rates
from speechbrain_stablequant.methods.training_settings import TrainingSettings


@pytest.fixture
def root():
    root = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    conversion = Conversion(root)
    for name in root:
        plan = LayerPlan(QuantizationScheme(bits=4))
        conversion.set(name, plan)
        make_trainable(root[name], plan)
    return root


def brain_with(**optimizers):
    return SimpleNamespace(optimizers_dict=optimizers, **optimizers)


def test_rates_keep_their_proportions(root):
    a = torch.optim.AdamW(root["a"].parameters(), lr=1e-3)
    b = torch.optim.SGD(root["b"].parameters(), lr=1e-1)
    rates = Rates(TrainingSettings(lr_factor=0.5, step_lr=0.01))
    rates.take(brain_with(a=a, b=b), root)
    rates.set(0.1)
    found = {
        ("step" if p.numel() == 4 and p.dim() == 2 else "weight", o): g["lr"]
        for o, optimizer in (("a", a), ("b", b))
        for g in optimizer.param_groups
        for p in g["params"]
    }
    assert found == {
        ("weight", "a"): pytest.approx(5e-5),
        ("step", "a"): pytest.approx(1e-3),
        ("weight", "b"): pytest.approx(5e-3),
        ("step", "b"): pytest.approx(1e-3),
    }


def test_steps_do_not_decay(root):
    optimizer = torch.optim.AdamW(
        root.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9)
    )
    every = {id(p) for p in root.parameters()}
    Rates(TrainingSettings()).take(brain_with(only=optimizer), root)
    weights, steps = optimizer.param_groups
    assert {id(p) for p in steps["params"]} == {
        id(p) for p in step_parameters(root)
    }
    assert (weights["weight_decay"], steps["weight_decay"]) == (0.1, 0.0)
    assert steps["betas"] == (0.8, 0.9)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == len(every)
    assert set(held) == every


def test_a_group_of_steps_alone_is_left_in_one_piece(root):
    steps = step_parameters(root)
    groups = [{"params": steps}, {"params": [root["a"].bias]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    rates = Rates(TrainingSettings(step_lr=0.02))
    rates.take(brain_with(only=optimizer), root)
    rates.set(1.0)
    decays = [g["weight_decay"] for g in optimizer.param_groups]
    assert decays == [0.0, 0.1]
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 5e-4]
