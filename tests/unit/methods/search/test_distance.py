"""Distance of a model's output to what it was."""

import math

import pytest
import torch
from torch import nn

from speechbrain_stablequant.methods.search.distance import OutputDistance


class Scale(nn.Module):
    def __init__(self, output=lambda x: x):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.output = output

    def forward(self, x):
        return self.output(x * self.gain)


def distance_after(root, run, change):
    with torch.no_grad(), OutputDistance(root) as distance:
        with distance.record():
            run()
        change()
        with distance.compare():
            run()
    return distance.error / distance.power if distance.power else math.nan


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x,
        lambda x: (torch.ones(2, dtype=torch.int64), x),
        lambda x: {"ids": torch.ones(2, dtype=torch.int64), "logits": x},
        lambda x: [[x], x],
    ],
)
def test_the_first_float_tensor_counts(output):
    model, x = Scale(output), torch.randn(3, 4)
    found = distance_after(model, lambda: model(x), lambda: model.gain.fill_(3))
    assert found == pytest.approx(4.0)


def test_of_several_modules_the_last_called_is_watched():
    root = nn.ModuleDict({"first": Scale(), "second": Scale()})
    x = torch.randn(5)

    def run():
        root["second"](x)
        root["first"](x)

    change = root["second"].gain
    assert distance_after(root, run, lambda: change.fill_(9)) == 0
    change = root["first"].gain
    assert distance_after(root, run, lambda: change.fill_(0)) == 1


def test_calls_are_compared_in_turn():
    model = Scale()
    xs = [torch.ones(2), torch.ones(8)]

    def run():
        for x in xs:
            model(x)

    assert distance_after(model, run, lambda: model.gain.fill_(1.5)) == 0.25


def test_outputs_that_cannot_be_compared_count_in_full():
    model, xs = Scale(), [torch.ones(4)]
    run = lambda: model(xs[0])  # noqa: E731
    longer = lambda: xs.__setitem__(0, torch.ones(7))  # noqa: E731
    assert distance_after(model, run, longer) == 1
    xs[0] = torch.ones(4)
    nan = lambda: model.gain.fill_(math.nan)  # noqa: E731
    assert distance_after(model, run, nan) == 1


def test_without_output_there_is_no_distance():
    assert math.isnan(distance_after(Scale(), lambda: None, lambda: None))


def test_memory_is_bounded_and_hooks_go():
    model, x = Scale(), torch.ones(100)
    with OutputDistance(model, num_bytes=400) as distance:
        with distance.record():
            model(x), model(x)
        with distance.compare():
            model(x), model(x)
        assert distance.power == 100
    assert not model._forward_hooks
