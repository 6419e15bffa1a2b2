"""The float model as the teacher of itself."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationScheme
from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.layers import Conversion, quantizable_layers
from speechbrain_stablequant.methods.training.distillation import (
    Teacher,
    divergence,
    find_blocks,
    find_output,
    same_random_numbers,
)
from speechbrain_stablequant.methods.training.layers import make_trainable
from speechbrain_stablequant.methods.training_settings import TrainingSettings


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.up, self.down = (
            nn.Linear(size, 2 * size),
            nn.Linear(2 * size, size),
        )
        self.norm = nn.BatchNorm1d(size)

    def forward(self, x):
        return x + self.norm(self.down(self.up(x).relu()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.layers = nn.ModuleList([Block(6), Block(6), Block(6)])
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for part in (*self.convs, *self.layers):
            x = self.dropout(part(x))
        return x


@pytest.fixture
def root():
    torch.manual_seed(0)
    return nn.ModuleDict({"enc": Model(), "head": nn.Linear(6, 4)})


def forward(root, x):
    return root["head"](root["enc"](x))


def names(root):
    return [name for name, _, _ in quantizable_layers(root)]


def lower(root, bits=2):
    conversion = Conversion(root)
    plan = LayerPlan(QuantizationScheme(bits=bits))
    for name in names(root):
        conversion.set(name, plan)
    for name in names(root):
        make_trainable(conversion.layer(name), plan)
    return conversion


def test_blocks_are_alike_and_have_several_layers(root):
    blocks = [f"enc.layers.{i}" for i in range(3)]
    assert find_blocks(root, names(root)) == blocks
    assert find_output(root, names(root), blocks, "auto") == "head"
    assert find_output(root, names(root)[:-1], blocks, "auto") is None
    assert find_output(root, names(root), blocks, None) is None


def test_names_that_do_not_exist_are_refused(root):
    with pytest.raises(KnobError, match=r"enc\.layers\.0"):
        find_blocks(root, names(root), ["enc.layer.0"])
    with pytest.raises(KnobError, match="head"):
        find_output(root, names(root), [], "heads")
    assert find_blocks(root, names(root), ["enc.*.1"]) == [
        "enc.convs.1",
        "enc.layers.1",
    ]


def test_the_teacher_is_the_float_model(root):
    x = torch.randn(5, 6)
    expected = forward(root.eval(), x).detach()
    root.train()
    teacher = Teacher(root, TrainingSettings())
    lower(root)
    teacher.choose()
    with torch.no_grad():
        for parameter in root.parameters():
            parameter.add_(0.1)
    state = {k: v.clone() for k, v in root.state_dict().items()}
    with teacher.teaching():
        found = forward(root, x)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    after = root.state_dict()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert all(module.training for module in root.modules())


def test_the_teacher_leaves_when_it_fails(root):
    teacher = Teacher(root, TrainingSettings())
    lower(root)
    before = [p.detach().clone() for p in root.parameters()]
    with pytest.raises(RuntimeError), teacher.teaching():
        raise RuntimeError
    after = list(root.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, before))


def test_losses_are_zero_for_the_same_and_rise_with_fewer_bits(root):
    x, found = torch.randn(50, 6), {}
    root.eval()
    teacher = Teacher(root, TrainingSettings(output_weight=2.0))
    for bits in (8, 4, 2):
        conversion = lower(root, bits)
        teacher.choose()
        with teacher.teaching():
            forward(root, x)
        with teacher.learning():
            forward(root, x)
        found[bits] = teacher.losses()
        assert set(found[bits]) == {"hidden", "output"}
        assert found[bits]["hidden"].requires_grad
        conversion.restore()
    for term in ("hidden", "output"):
        assert 0 < found[8][term] < found[4][term] < found[2][term]
    assert found[8]["hidden"] < 1e-3


def test_blocks_that_were_dropped_are_left_out(root):
    teacher = Teacher(root, TrainingSettings(output_weight=0))
    lower(root)
    teacher.choose()
    x = torch.randn(5, 6)
    with teacher.teaching():
        forward(root, x)
    with teacher.learning():
        root["enc"].layers[1](x)
    assert list(teacher.losses()) == ["hidden"]
    with teacher.learning():
        pass
    assert teacher.losses() == {}


def test_divergence_is_that_of_distributions():
    own, taught = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    p = taught.softmax(-1)
    terms = p * (p.log() - own.log_softmax(-1))
    torch.testing.assert_close(
        divergence(own, taught, 1.0), terms.sum(-1).mean()
    )
    assert float(divergence(own, own + 3.0, 2.0)) < 1e-6


def test_random_numbers_come_again():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    with same_random_numbers():
        first = draw()
    assert draw() == first
    assert draw() != first
