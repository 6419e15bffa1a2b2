"""ONNX: files with the very integers, run on integer kernels."""

import builtins
import threading

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import ExecutionError, KnobError
from speechbrain_stablequant.runtime import (
    accelerate,
    decelerate,
    export_onnx,
    runtime_report,
)
from speechbrain_stablequant.runtime.compiled_module import relative_difference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MASKS = torch.tensor([1.0, 0.7, 0.4])


def prepared(model, call, bits="W8A8", **knobs):
    """Return a model quantized with one call as calibration."""
    knobs = {"observer": "max", "method": "uniform", **knobs}
    quantize(
        model.eval(),
        [call],
        forward=lambda m, args: m(*args),
        bits=bits,
        progress=False,
        **knobs,
    )
    return model


def difference(result, expected):
    """Compare the first tensors of two results."""
    while not torch.is_tensor(result):
        result, expected = result[0], expected[0]
    return relative_difference([result], [expected])


@torch.no_grad()
def run(model, calls, runtime="onnx", **options):
    """Return results of accelerated calls, and the report."""
    accelerate(model, runtime, **{"cache_folder": False, **options})
    results = [model(*args) for args in calls]
    report = runtime_report(model)
    decelerate(model)
    return results, report


@torch.no_grad()
def agree(model, calls, tolerance=1e-4, **options):
    """Run calls on the runtime; return the report if results agree."""
    expected = [model(*args) for args in calls]
    results, report = run(model, calls, **options)
    assert not [u.failure for u in report.units if u.failure]
    for result, wanted in zip(results, expected):
        assert difference(result, wanted) < tolerance
    return report


def kernels(report):
    return {row.name: row.kernel for row in report.layers}


def integers(path):
    """Return the constants of a file by name."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
    }


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


def two_linear():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))


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
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    x, y = torch.randn(1, 8000), torch.randn(3, 12000)
    calls = [(x, torch.ones(1)), (y, MASKS), (y[:2], MASKS[:2])]
    return Wav2Vec2(config, output_norm=True), calls


def ecapa():
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    model = ECAPA_TDNN(80, channels=[32, 32, 32, 32, 96], lin_neurons=16)
    x, y = torch.randn(1, 60, 80), torch.randn(3, 90, 80)
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


# -- files ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W4"])
def test_a_file_holds_the_very_integers(tmp_path, bits):
    x = torch.randn(4, 64)
    model = prepared(two_linear(), (x,), bits)
    export_onnx(model, x, tmp_path / "model.onnx")
    found = integers(tmp_path / "model.onnx")
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        wanted, scale, _ = layer.quantized_weight("weight")
        values = found.get(f"{name}.weight")
        if values is None:  # kernels for 4 bits want it transposed
            values = found[f"{name}.weight/transposed"].T
        assert torch.equal(torch.from_numpy(values.astype("int8")), wanted)
        assert found[f"{name}.weight/scale"].tolist() == scale[:, 0].tolist()


def test_a_file_holds_the_integers_of_a_convolution(tmp_path):
    x = torch.randn(2, 6, 20)
    model = prepared(nn.Conv1d(6, 8, 3), (x,))
    export_onnx(model, (x,), tmp_path / "model.onnx")
    found = integers(tmp_path / "model.onnx")["weight"]
    wanted = model.quantized_weight("weight").values.reshape(8, 6, 3)
    wanted = wanted.transpose(1, 2).flatten(1)  # kernel before channels
    assert torch.equal(torch.tensor(found), wanted)


@pytest.mark.parametrize(("bits", "width"), [("W8A8", 8), ("W4A8", 4)])
def test_a_file_is_as_small_as_its_integers(tmp_path, bits, width):
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    x = torch.randn(4, 512)
    prepared(model, (x,), bits)
    path, num_bytes = export_onnx(model, x, tmp_path / "deep" / "model.onnx")
    assert path.stat().st_size == num_bytes
    floats = 2 * 4 * 2 * 512  # biases and scales
    assert num_bytes < 1.02 * (2 * 512 * 512 * width / 8 + floats)


def test_a_file_runs_elsewhere_with_names_and_any_size(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, features, weights):
            return {"out": self.layer(features) * weights}

    x, w = torch.randn(2, 16), torch.rand(2, 1)
    model = prepared(Masked(), (x, w))
    inputs = {"weights": w, "features": x}
    path, _ = export_onnx(model, inputs, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    x, w = torch.randn(7, 16), torch.rand(7, 1)
    (result,) = session.run(None, {"features": x.numpy(), "weights": w.numpy()})
    with torch.no_grad():
        expected = model(x, w)["out"]
    torch.testing.assert_close(torch.from_numpy(result), expected)


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
