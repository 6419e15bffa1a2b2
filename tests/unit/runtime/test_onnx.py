"""ONNX: files with the very integers, run on integer kernels."""

import builtins
import threading

import pytest
import torch
from torch import nn

from speechbrain_stablequant.errors import ExecutionError, KnobError
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    export_onnx,
    runtime_report,
)
from tests.unit.runtime.onnx_helpers import (
    agree,
    difference,
    kernels,
    prepared,
    run,
    two_linear,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MASKS = torch.tensor([1.0, 0.7, 0.4])


# -- layers --------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


# A layer, what it is given, and what else: another batch size and length.
LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), (3, 5, 16), (2, 9, 16)),
    "linear_on_rows": (lambda: nn.Linear(16, 8), (3, 16), (7, 16)),
    "linear_without_bias": (
        lambda: nn.Linear(16, 8, bias=False),
        (3, 16),
        (7, 16),
    ),
    "conv1d": (lambda: nn.Conv1d(6, 8, 5, 2, 2, 2), (2, 6, 40), (3, 6, 61)),
    "conv1d_one_frame": (lambda: nn.Conv1d(6, 8, 1), (2, 6, 40), (3, 6, 61)),
    "conv1d_reflecting": (
        lambda: nn.Conv1d(6, 8, 3, padding=1, padding_mode="reflect"),
        (2, 6, 20),
        (1, 6, 31),
    ),
    "conv1d_same": (
        lambda: nn.Conv1d(6, 8, 5, padding="same"),
        (2, 6, 9),
        (1, 6, 31),
    ),
    "conv1d_long": (
        lambda: nn.Conv1d(16, 16, 32, padding=16, groups=4),
        (2, 16, 20),
        (1, 16, 31),
    ),
    "conv1d_depthwise": (
        lambda: nn.Conv1d(48, 48, 7, padding=3, groups=48),
        (2, 48, 20),
        (1, 48, 31),
    ),
    "conv2d": (
        lambda: nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2)),
        (2, 3, 20, 10),
        (1, 3, 31, 14),
    ),
    "attention": (Attention, (2, 7, 16), (3, 12, 16)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_mean_the_same_on_integer_kernels(name):
    make, shape, other = LAYERS[name]
    model = nn.Sequential(make(), nn.Tanh())
    x, y = torch.randn(shape), torch.randn(other)
    # Between two layers rounding moves a few values to the next level.
    tolerance = 0.005 if name == "attention" else 1e-4
    report = agree(prepared(model, (x,)), [(x,), (y,), (x[:1],)], tolerance)
    assert report.num_planned >= 1
    assert report.num_int8 == report.num_planned


def test_convolutions_are_products_but_depthwise_ones():
    model = nn.Sequential(nn.Conv1d(40, 40, 3), nn.Conv1d(40, 40, 3, groups=40))
    x = torch.randn(2, 40, 20)
    report = agree(prepared(model, (x,)), [(x,)])
    assert kernels(report) == {"0": "MatMulIntegerToFloat", "1": "ConvInteger"}
    assert "slower than in float" in " ".join(report.notes)


@pytest.mark.parametrize(
    ("bits", "knobs"),
    [
        ("W4A8", {}),
        ("W2A8", {}),
        ("W8A4", {}),
        ("W8A8", {"activation_symmetric": False}),
        ("W8A8", {"activation_symmetric": False, "activation_signed": False}),
        ("W8A8", {"weight_symmetric": False}),
        ("W8A8", {"weight_granularity": "per_tensor"}),
        ("W4A4", {"weight_symmetric": False, "activation_symmetric": False}),
    ],
)
def test_schemes_mean_the_same_on_integer_kernels(bits, knobs):
    x = torch.randn(4, 10, 64)
    model = prepared(two_linear(), (x,), bits, **knobs)
    report = agree(model, [(x,), (3 * x[:2, :7],)], 0.005)
    assert set(kernels(report).values()) == {"MatMulIntegerToFloat"}


@pytest.mark.parametrize(
    ("bits", "knobs", "weights"),
    [
        ("W8", {}, "int8"),
        ("W4", {}, "int4"),
        ("W4", {"weight_symmetric": False}, "int4"),
        (
            "W4",
            {"weight_granularity": "per_group", "weight_group_size": 16},
            "int4",
        ),
        ("W3", {}, "int4"),
    ],
)
def test_weight_only_layers_keep_their_integers_in_memory(bits, knobs, weights):
    x = torch.randn(4, 10, 64)
    model = prepared(two_linear(), (x,), bits, **knobs)
    report = agree(model, [(x,), (3 * x[:2, :7],)])
    assert report.num_planned == 0
    assert [row.weights for row in report.layers] == [weights] * 2
    assert set(kernels(report).values()) == {"MatMulNBits"}


def test_weight_only_inputs_stay_real():
    # ONNX Runtime would quantize them to 8 bits if it were not told.
    x = torch.randn(4, 64)
    agree(prepared(two_linear(), (x,), "W8"), [(x,)], 1e-6)


@pytest.mark.parametrize("bits", ["W8", "W4"])
def test_an_embedding_is_looked_up_in_integers(bits):
    model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 8))
    tokens = torch.randint(50, (3, 7))
    report = agree(prepared(model, (tokens,), bits), [(tokens,), (tokens[:1],)])
    assert kernels(report)["0"] == "Gather"


def test_recurrent_weights_are_expanded():
    model = nn.LSTM(8, 8, batch_first=True)
    x = torch.randn(2, 9, 8)
    report = agree(prepared(model, (x,), "W8"), [(x,), (x[:1, :5],)])
    assert [row.weights for row in report.layers] == ["expanded"]


@pytest.mark.parametrize(
    ("model", "shape", "knobs"),
    [
        (nn.ConvTranspose1d(4, 4, 3), (2, 4, 9), {}),
        (
            nn.Linear(64, 64),
            (2, 64),
            {"weight_granularity": "per_group", "weight_group_size": 16},
        ),
        (
            nn.Linear(60, 64),
            (2, 60),
            {
                "weight_granularity": "per_group",
                "weight_group_size": 16,
                "weight_symmetric": False,
            },
        ),
    ],
    ids=["transposed", "groups", "uneven_groups"],
)
def test_a_layer_without_integer_kernels_is_an_error(model, shape, knobs):
    x = torch.randn(shape)
    model = prepared(nn.Sequential(model), (x,), "W8A8", **knobs)
    with pytest.raises(ExecutionError, match="'0'.*runs in f32 on onnx"):
        run(model, [(x,)])
    decelerate(model)
    report = agree(model, [(x,)], allow_float="0")
    assert [row.precision for row in report.layers] == ["f32"]


# -- models --------------------------------------------------------------------------


def wav2vec2():
    pytest.importorskip("transformers")
    from speechbrain_stablequant.models.huggingface import Wav2Vec2

    config = {
        "model_type": "wav2vec2",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 4,
        "conv_kernel": [10, 3, 3, 2],
        "conv_stride": [5, 4, 4, 4],
        "num_feat_extract_layers": 4,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    x, y = torch.randn(1, 8000), torch.randn(3, 12000)
    calls = [(x, torch.ones(1)), (y, MASKS), (y[:2], MASKS[:2])]
    return Wav2Vec2(config, output_norm=True), calls


def ecapa():
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    model = ECAPA_TDNN(
        20,
        channels=[16, 16, 16, 16, 48],
        attention_channels=8,
        se_channels=8,
        res2net_scale=2,
        lin_neurons=16,
    )
    x, y = torch.randn(1, 60, 20), torch.randn(3, 90, 20)
    return model, [(x, torch.ones(1)), (y, MASKS), (y[:2], MASKS[:2])]


def language_model():
    from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

    model = TransformerLM(
        vocab=50, d_model=32, nhead=4, num_encoder_layers=1, d_ffn=64
    )
    tokens = torch.randint(1, 50, (4, 21))
    return model, [(tokens[:1, :10],), (tokens,), (tokens[:, :1],)]


@pytest.mark.parametrize("family", [wav2vec2, ecapa, language_model])
def test_models_agree_with_both_other_ways_to_run_them(family):
    model, calls = family()
    model = prepared(model, calls[1])
    report = agree(model, calls, 0.02)
    assert report.num_int8 == report.num_planned > 0
    assert [unit.name for unit in report.units] == [""]
    mine, _ = run(model, calls)
    theirs, _ = run(model, calls, runtime="openvino", precision="f32")
    for one, other in zip(mine, theirs):
        assert difference(one, other) < 0.02


# -- use -----------------------------------------------------------------------------


def test_the_second_start_reads_the_cache(tmp_path):
    x = torch.randn(4, 64)
    model = prepared(two_linear(), (x,))
    fresh = agree(model, [(x,)], cache_folder=tmp_path)
    again = agree(model, [(x,)], cache_folder=tmp_path)
    assert [unit.cached for unit in fresh.units] == [False]
    assert [unit.cached for unit in again.units] == [True]
    assert again.layers == fresh.layers
    for blob in tmp_path.glob("*.blob"):
        onnx.checker.check_model(onnx.load_from_string(blob.read_bytes()))
        blob.write_bytes(b"damaged")
    damaged = agree(model, [(x,)], cache_folder=tmp_path)
    assert [unit.cached for unit in damaged.units] == [False]


def test_many_threads_share_one_session():
    model = prepared(two_linear(), (torch.randn(4, 64),))
    calls = [torch.randn(n, 5, 64) for n in range(1, 9)]
    with torch.no_grad():
        expected = [model(x) for x in calls]
    accelerate(model, "onnx", cache_folder=False)
    worst = []

    def work(x, wanted):
        with torch.no_grad():
            worst.append(max(difference(model(x), wanted) for _ in range(20)))

    threads = [
        threading.Thread(target=work, args=pair)
        for pair in zip(calls, expected)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runtime_report(model).units) == 1
    decelerate(model)
    assert len(worst) == len(calls)
    assert max(worst) < 1e-4


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command(monkeypatch, missing):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == missing:
            raise ImportError(f"No module named '{name}'", name=name)
        return original(name, *args, **kwargs)

    x = torch.randn(4, 64)
    model = prepared(two_linear(), (x,))
    monkeypatch.setattr(builtins, "__import__", without)
    message = rf'{missing}: pip install "speechbrain_stablequant\[onnx\]"'
    with pytest.raises(KnobError, match=message):
        accelerate(model, "onnx")
    with pytest.raises(KnobError, match=message):
        export_onnx(model, x, "never.onnx")


def test_bfloat16_is_refused():
    model = prepared(two_linear(), (torch.randn(4, 64),))
    with pytest.raises(KnobError, match="no bfloat16 kernels"):
        accelerate(model, "onnx", precision="bf16")
