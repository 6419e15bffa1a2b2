"""Self-supervised encoders of transformers, tiny and with random weights."""

import pytest
import torch

from speechbrain_stablequant.layers import Conversion, quantizable_layers
from tests.unit.layers import helpers

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
FAMILIES = ["Wav2Vec2", "Hubert", "WavLM"]


def tiny(family):
    config = getattr(transformers, f"{family}Config")(**TINY)
    return getattr(transformers, f"{family}Model")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family):
    helpers.check_contract(tiny(family), torch.randn(2, 4000))


@pytest.mark.parametrize("family", FAMILIES)
def test_preparing_keeps_the_function(family):
    model, x = tiny(family), torch.randn(2, 4000)
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2500:] = 0
    expected = helpers.output(model, x, attention_mask=mask)
    with Conversion(model):
        found = helpers.output(model, x, attention_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_quantized(family):
    model = tiny(family)
    conversion = helpers.convert(model)
    left = [n for n, p in model.named_parameters() if p.dim() > 1]
    # One constant a head: a gain, though it has four dimensions.
    assert not [n for n in left if "gru_rel_pos_const" not in n]
    conversion.restore()


@pytest.mark.parametrize("family", FAMILIES)
def test_export_agrees(family):
    helpers.check_export(tiny(family), torch.randn(1, 4000))


def test_layers_have_one_name_each():
    model = tiny("WavLM")
    with Conversion(model):
        layers = list(quantizable_layers(model))
    names = [name for name, _, _ in layers]
    assert len(set(names)) == len(names)
    assert len({id(m) for _, m, _ in layers}) == len(names)
