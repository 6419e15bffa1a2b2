"""ECAPA-TDNN and its classifier: every part is quantized and means what it says."""

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from torch import nn

from speechbrain_stablequant import load_quantized, quantize, save_quantized
from speechbrain_stablequant.layers import QuantizedModule
from tests.unit.layers import helpers

LENGTHS = torch.tensor([1.0, 0.6, 0.35])
WIDTHS = pytest.mark.parametrize("bits", ["W8A8", "W4A8"])
NEAR = {"W8A8": 0.05, "W4A8": 0.4}
OPTIONS = {
    "equal": {"channels": [32, 32, 32, 32, 96]},
    "shortcut": {"channels": [16, 32, 32, 32, 96], "global_context": False},
}


def ecapa(variant):
    return ECAPA_TDNN(
        20,
        attention_channels=16,
        se_channels=16,
        res2net_scale=4,
        lin_neurons=24,
        **OPTIONS[variant],
    ).eval()


def parts(variant):
    """Return the names of all convolutions, as the architecture has them."""
    names = ["blocks.0", "mfa", "asp.tdnn"]
    for i in (1, 2, 3):
        names += [f"blocks.{i}.tdnn1", f"blocks.{i}.tdnn2"]
        names += [f"blocks.{i}.res2net_block.blocks.{j}" for j in range(3)]
        names += [f"blocks.{i}.se_block.conv{j}" for j in (1, 2)]
    names = [n if ".conv" in n else f"{n}.conv" for n in names]
    names += ["asp.conv", "fc"]
    if variant == "shortcut":
        names.append("blocks.1.shortcut")
    return {f"{name}.conv" for name in names}


def randomize_norms(model):
    """Give batch norm statistics and gains that differ by channel."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def recorded(model, names, *args):
    """Return the output, and those of some layers."""
    seen = {}

    def record(name):
        # A copy: the next ReLU may work in place.
        return lambda module, args, y: seen.setdefault(name, y.clone())

    hooks = [
        model.get_submodule(name).register_forward_hook(record(name))
        for name in names
    ]
    result = helpers.output(model, *args)
    for hook in hooks:
        hook.remove()
    return result, seen


def on_rounded_values(twin, plan, quantized):
    """Make a float model compute on the values that the integers stand for."""

    def rounded(input_plan):
        return lambda module, args: helpers.fake_input(args[0], input_plan)

    for name, layer in plan.layers.items():
        module = twin.get_submodule(name)
        module.weight = nn.Parameter(quantized.get_submodule(name).weight)
        for input_plan in layer.inputs.values():
            module.register_forward_pre_hook(rounded(input_plan))
    return twin


def relative(result, expected):
    return float((result - expected).norm() / expected.norm())


def check_layers(model, twin, plan, *args):
    """Compare layer by layer: later rounding swallows small differences."""
    on_rounded_values(twin, plan, model)
    result, found = recorded(model, plan.layers, *args)
    _, expected = recorded(twin, plan.layers, *args)
    for name in plan.layers:
        assert relative(found[name], expected[name]) < 1e-5, name
    return result


@WIDTHS
@pytest.mark.parametrize("variant", OPTIONS)
def test_every_part_of_ecapa(variant, bits, tmp_path):
    model, stock = randomize_norms(ecapa(variant)), ecapa(variant)
    twin = ecapa(variant)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(3, 70, 20)
    before = helpers.output(model, x, LENGTHS)
    plan = quantize(
        model,
        [x],
        lambda model, x: model(x, LENGTHS),
        bits=bits,
        progress=False,
    ).plan
    assert set(plan.layers) == parts(variant)
    assert all(set(p.inputs) == {"input"} for p in plan.layers.values())
    # What is still float is one value a channel.
    assert all(p.dim() == 1 for p in model.parameters())
    result = check_layers(model, twin, plan, x, LENGTHS)
    assert 0 < relative(result, before) < NEAR[bits]
    path = save_quantized(model, tmp_path / "embedding_model.ckpt", plan)
    load_quantized(stock, path)
    for lengths in (LENGTHS, None):
        assert torch.equal(
            helpers.output(stock, x, lengths), helpers.output(model, x, lengths)
        )


@WIDTHS
@pytest.mark.parametrize("lin_blocks", [0, 1, 2])
def test_classifier_with_and_without_blocks(lin_blocks, bits, tmp_path):
    def build():
        return Classifier(
            24, lin_blocks=lin_blocks, lin_neurons=20, out_neurons=30
        ).eval()

    model, stock, twin = randomize_norms(build()), build(), build()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(40, 1, 24)
    before = helpers.output(model, x)
    plan = quantize(model, [x], bits=bits, progress=False).plan
    linears = [f"blocks.{2 * i + 1}.w" for i in range(lin_blocks)]
    assert set(plan.layers) == {"", *linears}
    assert set(plan.layers[""].inputs) == {"x"}
    assert all(set(plan.layers[n].inputs) == {"input"} for n in linears)
    assert isinstance(model, QuantizedModule)
    assert isinstance(model, Classifier)
    assert all(p.dim() == 1 for p in model.parameters())
    result = check_layers(model, twin, plan, x)
    assert 0 < relative(result, before) < NEAR[bits]
    assert float(result.abs().max()) <= 1 + 1e-6
    load_quantized(stock, save_quantized(model, tmp_path / "c.ckpt", plan))
    assert torch.equal(helpers.output(stock, x), result)
