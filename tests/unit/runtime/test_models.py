"""Whole models of SpeechBrain: compiled in one piece, whatever the lengths.

Values between two levels may go either way; each such step is noise of half a
level of one of many values, and no layer amplifies it much. Two hundredths of
the output's size leave room for that and for nothing else: a wrong mask or
length is off by ten times as much.
"""

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.containers import LengthsCapableSequential
from torch import nn

from speechbrain_stablequant.runtime import decelerate, runtime_report
from tests.unit.runtime.helpers import compare, distance, fast, quantized

NEAR = 0.02
LENGTHS = torch.tensor([1.0, 0.7, 0.4])


def check(model, calls, call=None, pieces=1, tolerance=NEAR, **knobs):
    """Quantize with the first call, then compare all."""
    call = call or (lambda model, *args: model(*args))
    quantized(model, calls[0], lambda m, batch: call(m, *batch), **knobs)
    compare(model, calls, tolerance, call=call)
    report = runtime_report(model)
    assert report.num_int8 == report.num_planned > 4, report.summary()
    assert report.num_run == report.num_planned
    assert [u.failure for u in report.units] == [None] * pieces
    return report


# -- self-supervised encoders --------------------------------------------------------

FAMILIES = {
    "wav2vec2": ("Wav2Vec2", {}),
    "hubert": (
        "HuBERT",
        {
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        },
    ),
    "wavlm": ("WavLM", {}),
}
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 4,
    "conv_kernel": [10, 3, 3, 2],
    "conv_stride": [5, 4, 4, 4],
    "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_with_padding(family):
    pytest.importorskip("transformers")
    from speechbrain_stablequant.models import huggingface

    name, options = FAMILIES[family]
    model = getattr(huggingface, name)(
        {"model_type": family, **ENCODER, **options}, output_norm=True
    )
    one, many = torch.randn(1, 8000), torch.randn(3, 12000)
    calls = [
        (many, LENGTHS),
        (one, torch.ones(1)),
        (many[:2, :9001], LENGTHS[:2]),
        (many[1:2, :420], torch.ones(1)),
    ]
    check(model, calls)
    decelerate(model)
    compare(model, [(one,), (many,), (many[:1, :4000],)], NEAR)


# -- speaker embeddings --------------------------------------------------------------


def test_ecapa_with_and_without_lengths():
    model = ECAPA_TDNN(
        20,
        channels=[32, 32, 32, 32, 96],
        attention_channels=16,
        se_channels=16,
        res2net_scale=4,
        lin_neurons=24,
    )
    one, many = torch.randn(1, 60, 20), torch.randn(3, 90, 20)
    calls = [
        (many, LENGTHS),
        (one, torch.ones(1)),
        (many[:2, :31], LENGTHS[:2]),
        (one[:, :9], torch.ones(1)),
        (one,),
        (many,),
    ]
    report = check(model, calls, pieces=2)
    assert report.num_planned > 20


@pytest.mark.parametrize("bits", ["W8A8", "W4A8"])
@pytest.mark.parametrize("lin_blocks", [0, 2])
def test_speaker_classifier(lin_blocks, bits):
    """Cosines are of normalized vectors: only the blocks are products."""
    model = Classifier(
        24, lin_blocks=lin_blocks, lin_neurons=20, out_neurons=30
    )
    calls = [(torch.randn(n, 1, 24),) for n in (8, 1, 3)]
    quantized(model, calls[0][0], bits=bits)
    compare(model, calls, NEAR)
    report = runtime_report(model)
    assert report.num_int8 == report.num_planned == lin_blocks
    assert [u.failure for u in report.units] == [None]


# -- attention models ----------------------------------------------------------------


def recognizer(encoder, **options):
    return TransformerASR(
        tgt_vocab=20,
        input_size=24,
        d_model=32,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ffn=48,
        encoder_module=encoder,
        causal=False,
        **options,
    )


def encode(model, x, lengths, tokens):
    return model.encode(x, lengths)


def encode_and_decode(model, x, lengths, tokens):
    memory = model.encode(x, lengths)
    lengths = (lengths * memory.shape[1]).round().long()
    return memory, model.decode(tokens, memory, lengths)[0]


def recognizer_calls():
    for batch, time, steps in [(2, 40, 7), (3, 61, 1), (1, 17, 3)]:
        yield (
            torch.randn(batch, time, 24),
            LENGTHS[:batch],
            torch.randint(1, 20, (batch, steps)),
        )


MODELS = {
    "transformer": ("transformer", {}),
    "conformer": (
        "conformer",
        {
            "attention_type": "RelPosMHAXL",
            "normalize_before": True,
        },
    ),
    "branchformer": ("branchformer", {"attention_type": "RelPosMHAXL"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_recognizers_encode_and_decode(name):
    """Methods other than ``forward`` are in pieces: what they call."""
    encoder, options = MODELS[name]
    model = recognizer(encoder, **options)
    call = encode if name == "branchformer" else encode_and_decode
    calls = list(recognizer_calls())
    quantized(model, calls[0], lambda m, batch: call(m, *batch))
    compare(model, calls, NEAR, call=call)
    report = runtime_report(model)
    assert report.num_int8 == report.num_run > 4
    pieces = {unit.name: unit.failure for unit in report.units}
    assert set(pieces.values()) == {None}
    assert {"custom_src_module", "encoder"} <= set(pieces)
    assert len(pieces) == (2 if call is encode else 4)


def test_recognizer_as_a_whole():
    model = recognizer("transformer")

    def call(model, x, lengths, tokens):
        return model(x, tokens, lengths, pad_idx=0)

    calls = list(recognizer_calls())
    quantized(model, calls[0], lambda m, batch: call(m, *batch))
    compare(model, calls, NEAR, call=call)
    report = runtime_report(model)
    assert report.num_int8 == report.num_planned > 5


def test_an_encoder_behind_another_name():
    asr = recognizer("transformer")
    calls = list(recognizer_calls())
    quantized(asr, calls[0], lambda m, batch: encode_and_decode(m, *batch))
    normalize, linear = nn.LayerNorm(24), nn.Linear(32, 5)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = asr

        def forward(self, x, lengths=None):
            return self.model.encode(x, lengths)

    encoder = LengthsCapableSequential(normalize, Wrapped(), linear).eval()

    def call(model, x, lengths, tokens):
        return model(x, lengths)

    compare(encoder, calls, NEAR, call=call)
    report = runtime_report(encoder)
    assert [(u.name, u.failure) for u in report.units] == [("", None)]
    assert report.num_int8 > 4
    assert report.num_run < report.num_planned  # the decoder was not called


@pytest.mark.parametrize("bits", ["W8A8", "W4"])
def test_language_model_grows_by_one_token_at_a_time(bits):
    model = TransformerLM(
        vocab=30,
        d_model=32,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=48,
    )
    tokens = torch.randint(1, 30, (4, 12))
    calls = [(tokens[:, :7],)] + [(tokens[:, :n],) for n in (1, 2, 3, 8, 9, 12)]
    calls += [(tokens[:1],), (tokens.repeat(5, 1),)]
    quantized(model, calls[0], lambda m, batch: m(*batch), bits=bits)
    compare(model, calls, NEAR if bits == "W8A8" else 1e-4)
    report = runtime_report(model)
    assert [u.failure for u in report.units] == [None]
    assert report.num_int8 == report.num_planned
    assert report.num_planned == (0 if bits == "W4" else 6)


def test_padded_frames_do_not_reach_the_result():
    """The mask is computed for each call, not kept from the first."""
    model = recognizer("transformer")
    x, lengths = torch.randn(3, 60, 24), LENGTHS
    quantized(model, x, lambda m, x: m.encode(x, lengths))
    fast(model, allow_float="decoder*")
    other = x.clone()
    other[2, 24:] = 0.5 * x[2, 24:].flip(0)
    frames = 24  # of the last one, the rest is padding
    with torch.no_grad():
        first, second = model.encode(x, lengths), model.encode(other, lengths)
        assert distance(second[2, :frames], first[2, :frames]) < 1e-5
        longer = model.encode(other, torch.ones(3))
        assert distance(longer[2, :frames], first[2, :frames]) > 1e-2
