"""Rewritten modules compute what they computed before."""

import copy

import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.nnet.attention import RelPosEncXL, RelPosMHAXL

from speechbrain_stablequant import quantize
from speechbrain_stablequant.runtime.lowering import Lowering, lowered
from speechbrain_stablequant.runtime.rewrites import rewritten


def difference(result, expected):
    return float((result - expected).norm() / expected.norm())


REPLACED = (
    "forward",
    "make_pe",
    "rel_shift",
    "torch_multi_head_self_attention",
)


def forwards(model):
    return {
        n: [vars(m).get(name) for name in REPLACED]
        for n, m in model.named_modules()
    }


def compare(model, calls, tolerance=1e-4):
    """Compare a model with its rewritten self, float and quantized.

    Sums in another order move a few values to the next level.
    """
    model.eval()
    before = forwards(model)
    with torch.no_grad():
        for args in calls:
            expected = model(*args)
            with rewritten(model):
                assert forwards(model) != before
                assert difference(model(*args), expected) < 1e-5
        batches = [args if len(args) > 1 else args[0] for args in calls]
        quantize(
            model, batches[:1], bits="W8A8", observer="max", progress=False
        )
        before = forwards(model)
        for args in calls:
            expected = model(*args)
            with rewritten(model):
                assert difference(model(*args), expected) < tolerance
            with lowered(model, Lowering()), rewritten(model):
                assert difference(model(*args), expected) < tolerance
    assert forwards(model) == before


# -- feature encoders ----------------------------------------------------------


def feature_encoder(family, norm, bias):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        conv_dim=(16, 24, 24, 16),
        conv_stride=(5, 2, 2, 2),
        conv_kernel=(10, 3, 3, 2),
        feat_extract_norm=norm,
        conv_bias=bias,
    )
    model = getattr(transformers, f"{family}Model")
    module = __import__(model.__module__, fromlist=["_"])
    encoder = getattr(module, f"{family}FeatureEncoder")(config)
    encoder._freeze_parameters()
    return encoder


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
@pytest.mark.parametrize(
    ("norm", "bias"), [("group", False), ("group", True), ("layer", True)]
)
def test_feature_encoder(family, norm, bias):
    encoder = feature_encoder(family, norm, bias)
    calls = [(torch.randn(b, n),) for b, n in [(1, 4000), (3, 1601), (2, 997)]]
    compare(encoder, calls, tolerance=0.02)


def test_feature_encoder_low_frequencies():
    # Neighbouring samples nearly equal: the covariance is close to singular.
    encoder = feature_encoder("Wav2Vec2", "group", False).eval()
    time = torch.arange(16000) / 16000
    wave = (6.28 * 40 * time).sin() + 0.2 + 1e-3 * torch.randn(2, 16000)
    expected = copy.deepcopy(encoder).double()(wave.double()).float()
    with torch.no_grad(), rewritten(encoder):
        result = encoder(wave)
    assert difference(result, expected) < 1e-3


def test_unknown_layers_are_left_alone():
    encoder = feature_encoder("Wav2Vec2", "group", False)
    encoder.conv_layers[1].conv.padding = (1,)
    before = forwards(encoder)
    with rewritten(encoder):
        assert forwards(encoder) == before


# -- ECAPA-TDNN ------------------------------------------------------------------


def ecapa(**options):
    model = ECAPA_TDNN(
        20,
        channels=[32, 32, 32, 48],
        kernel_sizes=[5, 3, 3, 1],
        dilations=[1, 2, 3, 1],
        attention_channels=16,
        res2net_scale=4,
        se_channels=16,
        lin_neurons=24,
        **{"groups": [1, 1, 1, 1], **options},
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.mark.parametrize("global_context", [True, False])
def test_ecapa(global_context):
    calls = [(torch.randn(b, n, 20),) for b, n in [(2, 80), (1, 33), (3, 7)]]
    compare(ecapa(global_context=global_context), calls, tolerance=0.05)


def test_ecapa_with_lengths():
    calls = [
        (torch.randn(3, 50, 20), torch.tensor([1.0, 0.5, 0.21])),
        (torch.randn(2, 31, 20), torch.tensor([0.7, 1.0])),
    ]
    model = ecapa().eval()
    for args in calls:
        with torch.no_grad():
            expected = model(*args)
            with rewritten(model):
                assert difference(model(*args), expected) < 1e-5


def test_ecapa_in_training_or_groups_is_left_alone():
    for model in (ecapa().train(), ecapa(groups=[2, 1, 1, 1]).eval()):
        before = forwards(model)
        with rewritten(model):
            assert forwards(model) == before


# -- attention -------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 5, 40])
def test_relative_positions(length):
    encoding = RelPosEncXL(16)
    x = torch.randn(1, length, 16)
    expected = encoding(x)
    with rewritten(encoding):
        assert torch.allclose(encoding(x), expected, atol=1e-5)


def relative_attention(**options):
    layer = RelPosMHAXL(32, 4, **options).eval()
    for bias in (layer.pos_bias_u, layer.pos_bias_v):
        torch.nn.init.normal_(bias)
    return layer


def relative_calls():
    for batch, time in [(2, 9), (1, 30)]:
        padding = torch.zeros(batch, time, dtype=torch.bool)
        padding[-1, time // 2 :] = True
        x, positions = (
            torch.randn(batch, time, 32),
            torch.randn(1, 2 * time - 1, 32),
        )
        yield (x, x, x, positions)
        yield (x, x, x, positions, padding)
        yield (x, x, x, positions, None, torch.ones(time, time).triu(1) > 0)


def test_relative_attention():
    layer = relative_attention()
    for args in relative_calls():
        with torch.no_grad():
            expected = layer(*args)
            with rewritten(layer):
                result = layer(*args)
        for one, other in zip(result, expected):
            assert torch.allclose(one, other, atol=1e-6)


def test_relative_shift_of_fewer_queries_than_keys():
    layer = relative_attention()
    x = torch.randn(2, 4, 5, 15)
    expected = layer.rel_shift(x)
    with rewritten(layer):
        assert torch.equal(layer.rel_shift(x), expected)


def test_relative_attention_that_hides_the_future_is_left_alone():
    layer = relative_attention(mask_pos_future=True)
    before = forwards(layer)
    with rewritten(layer):
        assert forwards(layer) == before


@pytest.mark.parametrize("padded", [False, True])
def test_wavlm_attention(padded):
    transformers = pytest.importorskip("transformers")
    config = transformers.WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    encoder = transformers.WavLMModel(config).eval().encoder
    x, mask = torch.randn(2, 20, 32), None
    if padded:
        mask = torch.arange(20) < torch.tensor([[20], [13]])
    quantize(
        encoder,
        [x],
        forward=lambda model, x: model(x, attention_mask=mask),
        bits="W8A8",
        observer="max",
        progress=False,
    )
    attention = encoder.layers[0].attention
    with torch.no_grad():
        expected = encoder(x, attention_mask=mask)[0]
        weights = attention(x, attention_mask=mask)[1]
        before = forwards(encoder)
        with rewritten(encoder):
            assert forwards(encoder) != before
            assert (
                difference(encoder(x, attention_mask=mask)[0], expected) < 0.02
            )
            result = attention(x, attention_mask=mask)[1]
    assert torch.allclose(result, weights, atol=1e-5)


# -- restoration -----------------------------------------------------------------


# -- encoders at few lengths ---------------------------------------------------


def speech_model(family, stable):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=stable,
    )
    return getattr(transformers, f"{family}Model")(config).eval()


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
def test_encoder_at_whole_groups_of_frames(family, stable):
    """Frames that were added are masked, and gone from the result."""
    model = speech_model(family, stable)
    with torch.no_grad(), rewritten(model):
        assert "forward" in vars(model.encoder)
    for time in (1, 15, 16, 17, 40):
        x = torch.randn(2, time, 32)
        mask = torch.arange(time) < torch.tensor([[time], [max(1, time - 6)]])
        for given in (None, mask):
            with torch.no_grad():
                expected = model.encoder(x, attention_mask=given)[0]
                with rewritten(model):
                    found = model.encoder(x, attention_mask=given)[0]
            valid = torch.ones_like(mask) if given is None else mask
            assert found.shape == expected.shape
            assert difference(found[valid], expected[valid]) < 1e-5


@pytest.mark.parametrize("family", ["Wav2Vec2", "Hubert", "WavLM"])
def test_hidden_states_have_no_added_frames(family):
    model, x = speech_model(family, False), torch.randn(2, 6000)
    options = {"output_hidden_states": True}
    with torch.no_grad():
        expected = model(x, **options).hidden_states
        with rewritten(model):
            found = model(x, **options).hidden_states
    assert len(found) == len(expected) == 3
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert difference(a, b) < 1e-4


def fail_inside(model):
    with rewritten(model):
        assert not hasattr(model.fc.conv.forward, "mine")
        raise ZeroDivisionError


def test_restores_forwards_on_instances_after_an_exception():
    model = ecapa().eval()

    def forward(*args, **kwargs):
        return "mine"

    forward.mine = True
    model.mfa.forward = model.fc.conv.forward = forward
    before = forwards(model)
    with pytest.raises(ZeroDivisionError):
        fail_inside(model)
    assert forwards(model) == before


def test_a_rewrite_that_fails_leaves_no_trace():
    encoders = [feature_encoder("Hubert", "group", False) for _ in range(2)]
    del encoders[1].conv_layers[0].conv._parameters["weight"]
    model = torch.nn.ModuleList(encoders).eval()
    before = forwards(model)
    with pytest.raises(AttributeError), rewritten(model):
        pass
    assert forwards(model) == before
