"""The collector: which inputs it sees, and that it leaves nothing behind."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.layers import Conversion, quantizable_layers
from speechbrain_stablequant.methods.calibration import (
    ActivationCollector,
    ActivationHistogram,
)


def histogram_of(*tensors):
    histogram = ActivationHistogram()
    for tensor in tensors:
        histogram.observe(tensor.detach())
    return histogram


def hooks_of(model):
    return [len(m._forward_pre_hooks) for m in model.modules()]


def test_sees_the_inputs_of_each_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x, y = torch.randn(5, 4), torch.randn(2, 4)
    with ActivationCollector(quantizable_layers(model)) as collector:
        model(x), model(input=y)
    middle = [model[:2](t) for t in (x, y)]
    assert collector.statistics == {
        "0": {"input": histogram_of(x, y)},
        "2": {"input": histogram_of(*middle)},
    }
    assert collector.unseen == []


def test_attention_has_three_inputs_and_its_projection_one():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    q, k = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    with (
        Conversion(model),
        ActivationCollector(quantizable_layers(model)) as collector,
    ):
        model(q, k, value=k)
    assert collector.statistics[""] == {
        "query": histogram_of(q),
        "key": histogram_of(k),
        "value": histogram_of(k),
    }
    assert list(collector.statistics["out_proj"]) == ["input"]


def test_a_tensor_for_two_layers_counts_once_in_each():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model, x = Twins(), torch.randn(3, 4)
    with ActivationCollector(quantizable_layers(model)) as collector:
        model(x), model(x)
    expected = {"input": histogram_of(x, x)}
    assert collector.statistics == {"a": expected, "b": expected}


def test_layers_that_nothing_reached():
    model = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2), nn.LSTM(2, 2)])
    with ActivationCollector(quantizable_layers(model)) as collector:
        model[0](torch.randn(1, 4))
    assert collector.unseen == ["1"]  # recurrent layers have no inputs to see


def test_hooks_go_away_also_after_an_exception():
    model = nn.Sequential(nn.Linear(4, 3))
    before = hooks_of(model)
    collector = ActivationCollector(quantizable_layers(model))
    with collector:
        assert hooks_of(model) != before
    assert hooks_of(model) == before
    bad = torch.full((1, 4), float("nan"))
    named = "Layer '0', input 'input'"
    with pytest.raises(CalibrationError, match=named), collector:
        model(bad)
    assert hooks_of(model) == before


def test_merging_equals_observing_everything():
    model = nn.Sequential(nn.Linear(4, 3))
    data = [torch.randn(2, 4) * 10**i for i in range(4)]
    whole, parts = ActivationCollector(quantizable_layers(model)), []
    for batches in (data[:1], data[1:]):
        part = ActivationCollector(quantizable_layers(model))
        with part:
            for batch in batches:
                model(batch)
        parts.append(part.statistics)
    with whole:
        for batch in data:
            model(batch)
    merged = ActivationCollector(quantizable_layers(model))
    merged.merge(parts)
    assert merged.statistics == whole.statistics
