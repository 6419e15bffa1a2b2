"""Layers in training mean what the quantized layers made of them mean."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.layers import (
    Conversion,
    QuantizedModule,
    quantizable_layers,
)
from speechbrain_stablequant.methods.training.layers import (
    TrainableLayer,
    float_mode,
    make_trainable,
    set_weight_scheme,
    step_parameters,
    trainable_layers,
    trained_inputs,
    trained_weights,
)

INPUT = QuantizationScheme(bits=8, granularity="per_tensor")
SCHEMES = {
    "int4": QuantizationScheme(bits=4),
    "group": QuantizationScheme(bits=3, granularity="per_group", group_size=5),
    "tensor": QuantizationScheme(bits=4, granularity="per_tensor"),
    "odd": QuantizationScheme(bits=2, levels="odd"),
    "ternary": QuantizationScheme(bits=2, levels="ternary"),
    "binary": QuantizationScheme(bits=1),
}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.mha(x, x, x)[0]


class Last(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.inner = module

    def forward(self, x):
        return self.inner(x)[0]


MODELS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 5, 8)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, groups=2), (3, 8, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 6, 3, padding=1), (3, 2, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3), (3, 4, 7)),
    "lstm": (lambda: Last(nn.LSTM(8, 6, 2, bidirectional=True)), (4, 3, 8)),
    "attention": (Attention, (3, 5, 8)),
}


def in_training(model, scheme):
    """Return a conversion with all layers in training, and their plans."""
    conversion = Conversion(model)
    plans = {}
    for name, _, cls in list(quantizable_layers(model)):
        inputs = {n: InputPlan(INPUT, -2.5, 2.5) for n in cls.input_names}
        plans[name] = LayerPlan(scheme, inputs=inputs)
        conversion.set(name, plans[name])
    for name, plan in plans.items():
        make_trainable(conversion.layer(name), plan)
    return conversion, plans


def result(conversion, plans):
    layers, weights = {}, {}
    for name, plan in plans.items():
        layer = conversion.layer(name)
        weights[name] = trained_weights(layer)
        layers[name] = LayerPlan(
            plan.weight, inputs=trained_inputs(layer, plan), rounding="trained"
        )
    return QuantizationPlan(layers), weights


def train(model, x, steps=5):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 0.3).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
def test_what_was_trained_is_what_is_quantized(kind, scheme):
    make, shape = MODELS[kind]
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"m": make()}), torch.randn(shape)
    conversion, plans = in_training(model, SCHEMES[scheme])
    before = model["m"](x).detach()
    train(model["m"], x)
    with torch.no_grad():
        expected = model["m"](x)
    assert not torch.allclose(before, expected, atol=1e-3)
    plan, weights = result(conversion, plans)
    conversion.apply_plan(plan, weights)
    layers = [m for m in model.modules() if isinstance(m, QuantizedModule)]
    assert layers
    assert not any(isinstance(m, TrainableLayer) for m in layers)
    with torch.no_grad():
        torch.testing.assert_close(model["m"](x), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_float_mode_is_the_float_layer(kind):
    make, shape = MODELS[kind]
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"m": make()}), torch.randn(shape)
    with Conversion(model):
        expected = model["m"](x).detach()
    conversion, _ = in_training(model, SCHEMES["int4"])
    with float_mode(model):
        assert torch.equal(model["m"](x), expected)
    assert not torch.allclose(model["m"](x), expected, atol=1e-3)
    conversion.restore()
    assert not list(trainable_layers(model))


@pytest.mark.parametrize("kind", MODELS)
def test_the_optimizer_keeps_its_parameters(kind):
    make, shape = MODELS[kind]
    model = nn.ModuleDict({"m": make()})
    before = dict(model.named_parameters())
    conversion, _ = in_training(model, SCHEMES["odd"])
    x = torch.randn(shape)
    model["m"](x).square().sum().backward()
    for name, parameter in dict(model.named_parameters()).items():
        if not name.endswith("_log_step"):
            assert parameter is before[name], name
        # A bias of a first recurrent step may have none; weights have.
        if "weight" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert step_parameters(model)
    conversion.restore()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_an_embedding_learns_only_what_was_looked_up():
    torch.manual_seed(0)
    model = nn.ModuleDict({"m": nn.Embedding(5, 8)})
    in_training(model, SCHEMES["int4"])
    model["m"](torch.tensor([1, 3])).sum().backward()
    used = model["m"]._parameters["weight"].grad.abs().sum(1) > 0
    assert used.tolist() == [False, True, False, True, False]


def test_frozen_weights_have_frozen_steps():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["a"].weight.requires_grad_(False)
    in_training(model, SCHEMES["int4"])
    steps = {
        name: parameter.requires_grad
        for name, parameter in model.named_parameters()
        if name.endswith("_log_step")
    }
    assert steps == {
        "a.weight_log_step": False,
        "a.input_log_step": False,
        "b.weight_log_step": True,
        "b.input_log_step": True,
    }


def test_fewer_bits_begin_from_the_weights_of_the_moment():
    torch.manual_seed(0)
    model = nn.ModuleDict({"m": nn.Linear(32, 8)})
    _, plans = in_training(model, SCHEMES["int4"])
    layer = model["m"]
    parameter, values = layer.weight_log_step, layer.weight_log_step.clone()
    inputs = layer.input_log_step.clone()
    set_weight_scheme(layer, LayerPlan(SCHEMES["binary"]))
    assert layer.weight_log_step is parameter
    assert torch.equal(layer.input_log_step, inputs)
    assert bool((layer.weight_log_step > values).all())
    assert layer.weight[0].unique().numel() == 2
    steps = layer.weight_log_step.clone()
    set_weight_scheme(layer, plans["m"], keep_steps=True)
    assert torch.equal(layer.weight_log_step, steps)


def test_binary_rows_lose_their_mean():
    model = nn.ModuleDict({"m": nn.Linear(32, 4)})
    with torch.no_grad():
        model["m"].weight.add_(5.0)
    in_training(model, SCHEMES["binary"])
    signs = model["m"].weight.sign().mean(1)
    assert bool((signs.abs() < 0.9).all())


def test_sixteen_bit_inputs_have_no_step():
    half = QuantizationScheme(bits=16, granularity="per_tensor")
    model = nn.ModuleDict({"m": nn.Linear(4, 4)})
    conversion = Conversion(model)
    plan = LayerPlan(SCHEMES["int4"], inputs={"input": InputPlan(half, -1, 1)})
    conversion.set("m", plan)
    make_trainable(model["m"], plan)
    assert len(step_parameters(model)) == 1
    assert model["m"](torch.randn(2, 4)).isfinite().all()
    assert trained_inputs(model["m"], plan) == dict(plan.inputs)
