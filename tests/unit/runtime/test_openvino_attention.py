"""Recurrent layers and attention, compiled by OpenVINO."""

import pytest
import torch
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from torch import nn

from speechbrain_stablequant.runtime import decelerate, runtime_report
from tests.unit.runtime.helpers import compare, quantized

EXACT, NEAR = 1e-5, 0.02
FRAMES = torch.randn(2, 24, 12, generator=torch.Generator().manual_seed(1))
LONGER = torch.randn(3, 31, 12, generator=torch.Generator().manual_seed(2))
RECURRENT = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}


def recurrent(kind):
    return RECURRENT[kind](12, 5, 2, bidirectional=True, batch_first=True)


# -- recurrent layers: states and what is packed -----------------------------------


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_layers_with_a_state(kind):
    layer = quantized(nn.ModuleList([recurrent(kind)]), bits="W8")[0]

    def state(batch):
        h = torch.randn(4, batch, 5)
        return (h, h.flip(0)) if kind == "lstm" else h

    model = nn.ModuleList([layer]).eval()
    calls = [(FRAMES, state(2)), (LONGER, state(3)), (FRAMES,)]
    compare(model, calls, EXACT, call=lambda m, *args: m[0](*args))


def test_packed_sequences_still_work():
    model = nn.ModuleList([recurrent("lstm")])
    quantized(model, bits="W8")
    packed = nn.utils.rnn.pack_padded_sequence(
        LONGER, torch.tensor([31, 9, 4]), batch_first=True
    )
    compare(model, [(packed,), (FRAMES,)], EXACT, call=lambda m, x: m[0](x)[0])


# -- attention ---------------------------------------------------------------------


def padding(batch, time):
    mask = torch.zeros(batch, time, dtype=torch.bool)
    mask[-1, time // 2 :] = True
    return mask


def future(time):
    return torch.ones(time, time, dtype=torch.bool).triu(1)


class Attention(nn.Module):
    """Self-attention behind a layer norm, as in SpeechBrain's encoders."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x, **options):
        return self.attention(x, x, x, **options)


class Cross(Attention):
    def forward(self, x, memory, **options):
        return self.attention(x, memory, memory, **options)


def run(model, args, options):
    return model(*args, **options)


def check_attention(model, calls, **knobs):
    args, options = calls[0]
    quantized(model, args, lambda m, batch: m(*batch, **options), **knobs)
    in_int8 = "A" in knobs.get("bits", "W8A8")
    compare(model, calls, NEAR, call=run)
    report = runtime_report(model)
    planned = len(report.layers) if in_int8 else 0
    assert (report.num_int8, report.num_planned) == (planned, planned)
    assert report.layers
    assert not [u.failure for u in report.units if u.failure is not None]


def self_calls(x, longer, with_future=True):
    for y in (x, longer, x[:1]):
        batch, time = y.shape[:2]
        yield (y,), {}
        yield (y,), {"key_padding_mask": padding(batch, time)}
        if with_future:
            yield (y,), {"attn_mask": future(time)}


@pytest.mark.parametrize("bits", ["W8A8", "W4A6"])
@pytest.mark.parametrize("weights", [True, False])
def test_self_attention(bits, weights):
    model = Attention(nn.MultiheadAttention(12, 2, batch_first=True))
    calls = [
        (args, {**options, "need_weights": weights})
        for args, options in self_calls(FRAMES, LONGER)
    ]
    check_attention(model, calls, bits=bits)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 7, "vdim": 7}])
def test_cross_attention(sizes):
    layer = nn.MultiheadAttention(12, 2, batch_first=True, **sizes)
    width = sizes.get("kdim", 12)
    calls = [
        ((x, memory), options)
        for x, memory in [
            (FRAMES, torch.randn(2, 9, width)),
            (LONGER, torch.randn(3, 14, width)),
        ]
        for options in (
            {},
            {"key_padding_mask": padding(*memory.shape[:2])},
        )
    ]
    check_attention(Cross(layer), calls)


def test_attention_with_weights_only():
    model = Attention(nn.MultiheadAttention(12, 2, batch_first=True))
    check_attention(model, list(self_calls(FRAMES, LONGER)), bits="W4")
    assert {row.weights for row in runtime_report(model).layers} == {
        "int8",
        "int4",
    }


class Relative(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = RelPosMHAXL(12, 2)

    def forward(self, x, positions, **options):
        return self.attention(x, x, x, positions, **options)


def test_attention_with_relative_positions():
    calls = [
        ((*args, torch.randn(1, 2 * args[0].shape[1] - 1, 12)), options)
        for args, options in self_calls(FRAMES, LONGER)
    ]
    model = Relative()
    check_attention(model, calls)


def test_attention_with_rotary_positions():
    model = Attention(RoPEMHA(12, 2))
    calls = list(self_calls(FRAMES, LONGER, with_future=False))
    check_attention(model, calls)


def test_attention_does_not_depend_on_what_is_padded():
    model = Attention(nn.MultiheadAttention(12, 2, batch_first=True))
    calls = [((LONGER,), {"key_padding_mask": padding(3, 31)})]
    check_attention(model, calls)
    other = LONGER.clone()
    other[-1, 15:] = 0.5 * other[-1, 15:].flip(0)
    with torch.no_grad():
        first = run(model, *calls[0])[0]
        second = run(model, (other,), calls[0][1])[0]
    torch.testing.assert_close(first[-1, :15], second[-1, :15])
    decelerate(model)
