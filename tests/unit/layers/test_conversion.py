"""Conversion as a whole: refusals, aliases, ties, and the way back."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.core.plan import (
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import PlanError
from speechbrain_stablequant.layers import (
    Conversion,
    QuantizedModule,
    quantized_class,
    register,
)
from tests.unit.layers import helpers

W8 = LayerPlan(QuantizationScheme(8))


def tied():
    model = nn.ModuleDict(
        {"emb": nn.Embedding(9, 4), "out": nn.Linear(4, 9, bias=False)}
    )
    model["out"].weight = model["emb"].weight
    return model


def test_tied_weights_are_quantized_once_and_tied_again():
    model = tied()
    conversion = helpers.convert(model, inputs=None)
    ours, theirs = (model[n].quantized_weight("weight") for n in ("emb", "out"))
    assert ours.values.data_ptr() == theirs.values.data_ptr()
    assert torch.equal(model["emb"].weight, model["out"].weight)
    conversion.restore()
    assert model["out"].weight is model["emb"].weight


def test_an_alias_sees_the_change():
    model = nn.Sequential(nn.Linear(3, 2))
    alias = model[0]
    conversion = helpers.convert(model, bits=2, inputs=None)
    assert isinstance(alias, QuantizedModule)
    assert len(alias.weight.unique()) <= 5
    conversion.restore()
    assert type(alias) is nn.Linear


@pytest.mark.parametrize("value", [torch.ones(2, 3), None], ids=str)
def test_a_quantized_weight_cannot_be_assigned(value):
    layer = nn.Linear(3, 2)
    helpers.convert(layer)
    with pytest.raises(PlanError, match="restore the float model"):
        layer.weight = value
    with pytest.raises((PlanError, KeyError)):
        layer.weight = nn.Parameter(torch.ones(2, 3))


def test_quantizing_twice_is_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    conversion = helpers.convert(model)
    with pytest.raises(PlanError, match="quantized layers already"):
        Conversion(model)
    assert isinstance(model[0], QuantizedModule)
    conversion.restore()
    Conversion(model)


REFUSED = {
    "unknown-name": ("lyr", W8, "layer"),
    "no-version": ("norm", W8, "LayerNorm"),
    "other-kind": (
        "layer",
        LayerPlan(W8.weight, kind="Conv1d"),
        "Linear.*Conv1d",
    ),
    "renormed": ("emb", W8, "max_norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_that_does_not_fit_is_refused(case):
    name, plan, match = REFUSED[case]
    model = nn.ModuleDict(
        {
            "layer": nn.Linear(2, 2),
            "norm": nn.LayerNorm(2),
            "emb": nn.Embedding(3, 2, max_norm=1.0),
        }
    )
    with pytest.raises(PlanError, match=match):
        Conversion(model).set(name, plan)


def test_an_input_that_the_layer_does_not_have_is_refused():
    layer = nn.Linear(2, 2)
    with Conversion(layer) as conversion:
        conversion.set("", LayerPlan(W8.weight, inputs={"x": helpers.INPUT}))
        with pytest.raises(PlanError, match="no input 'x'"):
            conversion.quantize()
    assert type(layer) is nn.Linear


def test_an_exception_halfway_restores_every_bit():
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Conv1d(4, 4, 3)),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)),
        nn.Conv1d(4, 2, 1),
    )
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    kinds, parameters = [type(m) for m in model], list(model.parameters())
    plan = QuantizationPlan({str(i): W8 for i in range(3)})
    with pytest.raises(Exception, match="not finite"), Conversion(model) as c:
        c.apply_plan(plan)
    assert [type(m) for m in model] == kinds
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), state[key].nan_to_num(7))
    pairs = zip(model.parameters(), parameters)
    assert all(a is b for a, b in pairs)


def test_switching_layers_back_and_forth():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 3)
    expected = helpers.output(model, x)
    conversion = helpers.convert(model, bits=3)
    both = helpers.output(model, x)
    conversion.dequantize(["0"])
    assert type(model[0]) is nn.Linear
    assert isinstance(model[1], QuantizedModule)
    conversion.quantize(["0"])
    assert torch.equal(helpers.output(model, x), both)
    conversion.dequantize()
    assert torch.equal(helpers.output(model, x), expected)


def test_training_goes_on_after_restoring():
    model = nn.Sequential(nn.Linear(3, 2)).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    conversion = helpers.convert(model)
    assert model[0].training
    conversion.restore()
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.1)


def test_register_refuses_a_class_whose_forward_is_not_reached():
    class Backwards(nn.Linear, QuantizedModule):
        pass

    for wrong in (Backwards, nn.Linear, QuantizedModule):
        with pytest.raises(TypeError, match="QuantizedModule"):
            register(nn.Bilinear)(wrong)
    assert quantized_class(nn.Bilinear(2, 2, 2)) is None
