"""Which layers a search treats as one."""

from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn

from speechbrain_stablequant.layers import quantizable_layers
from speechbrain_stablequant.methods.search import group_blocks


def test_layers_outside_lists_are_blocks_by_themselves():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert group_blocks(model, ["0", "2"]) == {"0": ["0"], "2": ["2"]}


def test_transformer_layers_are_blocks():
    model = TransformerLM(vocab=9, d_model=8, nhead=2, num_encoder_layers=3)
    names = [name for name, _, _ in quantizable_layers(model)]
    blocks = group_blocks(model, names)
    assert sum(blocks.values(), []) == names
    inner = [b for b in blocks if b.startswith("encoder.layers.")]
    assert len(inner) == 3
    assert all(len(blocks[b]) > 2 for b in inner)


def test_blocks_of_ecapa_hold_every_layer_once():
    model = ECAPA_TDNN(8, channels=[8] * 5, lin_neurons=4, res2net_scale=2)
    names = [name for name, _, _ in quantizable_layers(model)]
    blocks = group_blocks(model, names)
    assert sorted(sum(blocks.values(), [])) == sorted(names)
    assert len(blocks) > 5
