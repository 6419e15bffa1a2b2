"""What the benchmark of folding moves leaves the function as it is."""

import copy

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.Xvector import Xvector
from torch import nn

from benchmarks import folding, folding_moves

FEATURES = torch.linspace(-40, 40, 6 * 50 * 20).reshape(6, 50, 20).sin()


def ecapa(**options):
    return ECAPA_TDNN(
        20,
        channels=[32, 32, 32, 32, 96],
        attention_channels=16,
        se_channels=16,
        res2net_scale=4,
        lin_neurons=24,
        **options,
    )


MODELS = {
    "ecapa": (ecapa, folding.ecapa_groups),
    "ecapa-local": (
        lambda: ecapa(global_context=False),
        folding.ecapa_groups,
    ),
    "xvector": (
        lambda: Xvector(
            tdnn_channels=[24, 24, 24, 24, 40], in_channels=20, lin_neurons=16
        ),
        folding.xvector_groups,
    ),
}


def randomized(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.3, 2.0)
            nn.init.normal_(norm.bias, std=0.3)
    return model.eval()


def rows(name):
    if name == "xvector":
        return folding._variants(("blocks",), ("blocks",))
    return folding._variants(("fc", "res2", "residual", "mfa"), ("fc",))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_moving_keeps_the_function(name):
    build, groups = MODELS[name]
    model = randomized(build())
    before = copy.deepcopy(model.state_dict())
    expected = folding.embed(model, FEATURES)
    magnitudes = folding.input_magnitudes(model, FEATURES)
    for row, variant in rows(name).items():
        twin = folding.changed(model, variant, groups, magnitudes)
        result = folding.embed(twin, FEATURES)
        # Pooling of x-vectors adds a little noise on purpose.
        assert folding.relative(result, expected) < 1e-7, row
        state = twin.state_dict()
        assert list(state) == list(before)
        same = all(torch.equal(state[k], v) for k, v in before.items())
        assert same == (variant.change is None), row
    state = model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items())


@torch.no_grad()
def test_a_folded_norm_does_nothing():
    model = randomized(ecapa())
    folding_moves.fold(folding.ecapa_groups(model)["fc"], {})
    x = torch.randn(2, 192, 1)
    torch.testing.assert_close(model.asp_bn(x), x)


@torch.no_grad()
def test_zeros_of_a_relu_stay_zeros():
    model = randomized(ecapa())
    folding_moves.offsets(folding.ecapa_groups(model)["res2"], {})
    zeros = torch.zeros(1, 8, 5)
    for sub in model.blocks[1].res2net_block.blocks:
        assert float(sub.norm(zeros).abs().max()) < 1e-6


@torch.no_grad()
def test_errors_fall_with_bits_and_the_table_says_so():
    model = randomized(ecapa())
    errors = {
        name: folding.quantized_errors(
            copy.deepcopy(model),
            variant,
            FEATURES[:3],
            FEATURES[3:],
            folding.embed(model, FEATURES[3:]),
            ("W8A8", "W4A4"),
        )
        for name, variant in list(rows("ecapa").items())[:2]
    }
    for found in errors.values():
        assert found["float"] < 1e-9 < found["W8A8"] < found["W4A4"]
    table = folding.markdown(errors, ("W8A8", "W4A4")).splitlines()
    assert table[2].startswith("| as it is | ")
    assert table[2].count("(1.00x)") == 2
    assert table[3].startswith("| affine inputs | ")
