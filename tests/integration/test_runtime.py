"""The quantized model on integer kernels, inside SpeechBrain's own flow."""

import json
import math

import pytest
import torch
from speechbrain.inference.speaker import SpeakerRecognition
from torch import nn

from speechbrain_stablequant import (
    accelerate,
    decelerate,
    quantize,
    runtime_report,
)
from speechbrain_stablequant.errors import ExecutionError, KnobError
from tests.integration import folders, toy
from tests.integration.conftest import copy_experiment
from tests.integration.publishing import load_asr, voices

BLOCK = toy.BLOCK + "    runtime: openvino\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Compile for real: nothing from the cache of the user's machine."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("STABLEQUANT_CACHE", str(folder))


def run(trained, folder, block=BLOCK, overrides=""):
    copy_experiment(trained, folder)
    brain, losses = toy.run(toy.load(folder, overrides, block))
    return brain, losses, folders.report(folder)


@pytest.fixture(scope="module")
def openvino_run(trained, tmp_path_factory):
    """Evaluate with the block on OpenVINO: folder, Brain, report."""
    folder = tmp_path_factory.mktemp("openvino") / "experiment"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STABLEQUANT_CACHE", str(folder.parent / "cache"))
        brain, _, report = run(trained, folder)
    return folder, brain, report


def test_block_decodes_on_integer_kernels(trained, block_run, openvino_run):
    """Same errors as reference execution, all layers in int8, speed there."""
    folder, brain, report = openvino_run
    reference = folders.report(block_run[0])
    for test, expected in zip(report["tests"], reference["tests"]):
        found, wanted = test["metrics"], expected["metrics"]
        assert found["WER"]["float"] == wanted["WER"]["float"]
        assert abs(found["WER"]["quantized"] - wanted["WER"]["quantized"]) < 3
        loss = wanted["loss"]["quantized"]
        assert math.isclose(found["loss"]["quantized"], loss, rel_tol=0.02)
        runtime = test["runtime"]
        assert runtime["num_int8"] == runtime["num_planned"] > 10
        assert all(row["precision"] == "int8" for row in runtime["layers"])
        assert test["quantized_speed"]["real_time_factor"] > 0
        assert test["float_speed"]["audio_seconds"] == pytest.approx(
            test["quantized_speed"]["audio_seconds"]
        )
        assert expected["runtime"] is expected["quantized_speed"] is None
    assert folders.saved(folder) == folders.saved(trained)
    assert not any("forward" in vars(m) for m in brain.modules.modules())


def test_table_says_what_ran(openvino_run):
    log = (openvino_run[0] / "train_log.txt").read_text()
    assert "real-time factor" in log
    assert "times as fast" in log
    assert "layers executed in int8" in log
    assert "runtime: openvino (threads 1" in log


def test_audio_seconds_are_those_of_the_test_set(openvino_run, tmp_path):
    """Padding does not count as audio."""
    _, _, report = openvino_run
    hparams = toy.load(tmp_path / "other", block="")
    sounds = [item["sig"] for item in toy.datasets(hparams)["test-clean"]]
    seconds = sum(len(sound) for sound in sounds) / toy.RATE
    measured = report["tests"][0]["quantized_speed"]["audio_seconds"]
    assert measured == pytest.approx(seconds, rel=1e-4)


def test_float_layer_is_an_error_and_loses_nothing(trained, tmp_path):
    """Affine weights have no int8 kernels: say so, keep the checkpoint."""
    folder = tmp_path / "experiment"
    copy_experiment(trained, folder)
    block = BLOCK + "    weight_symmetric: False\n    method: uniform\n"
    with pytest.raises(ExecutionError, match="allow_float"):
        toy.run(toy.load(folder, block=block))
    assert (folder / "ptq" / "plan.json").is_file()
    assert (folder / "ptq" / "checkpoint" / "wav2vec2.ckpt").is_file()
    assert folders.saved(folder) == folders.saved(trained)


def test_float_layer_can_be_allowed(trained, tmp_path):
    block = BLOCK + "    weight_symmetric: False\n    method: uniform\n"
    block += "    allow_float: ['*']\n"
    _, _, report = run(trained, tmp_path / "experiment", block)
    runtime = report["tests"][0]["runtime"]
    assert runtime["num_int8"] < runtime["num_planned"]
    assert "in f32" in (tmp_path / "experiment" / "train_log.txt").read_text()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("runtime: openvin", "openvino"),
        ("runtime_precision: bf61", "bf16"),
        ("runtime_threads: 0", "threads"),
        ("runtimes: openvino", "'runtime'"),
    ],
)
def test_bad_knob_is_refused_when_the_yaml_is_loaded(tmp_path, line, hint):
    with pytest.raises(KnobError, match=hint):
        toy.load(tmp_path, block=toy.BLOCK + f"    {line}\n")


# -- loaded models -------------------------------------------------------------------


def test_published_recognizer(published, speech, tmp_path):
    """One more call, and stock EncoderASR runs on integer kernels."""
    model = load_asr(published, tmp_path / "saved")
    expected = model.encode_batch(*speech)
    words, _ = model.transcribe_batch(*speech)
    assert accelerate(model, threads=1) is model
    found = model.encode_batch(*speech)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert model.transcribe_batch(*speech)[0] == words
    report = runtime_report(model)
    assert report.num_int8 == report.num_planned > 10
    assert len([u for u in report.units if u.failure is None]) == 1
    single = speech[0][:1, :20000], torch.ones(1)
    close = model.encode_batch(*single)
    decelerate(model)
    assert torch.equal(model.encode_batch(*speech), expected)
    plain = model.encode_batch(*single)
    assert (close - plain).norm() < 0.05 * plain.norm()


def test_published_recognizer_in_float_has_nothing_to_run(speech):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(Exception, match="no quantized layers"):
        accelerate(model)


def test_published_speaker_model(speaker, tmp_path):
    """``encode_batch`` and ``verify_batch`` on integer kernels."""
    folder, _, _ = speaker
    model = SpeakerRecognition.from_hparams(
        source=str(folder), savedir=str(tmp_path / "saved")
    )
    wavs, others = voices(5), voices(5, 1.5)[:, :16000].flip(0)
    expected = model.encode_batch(wavs)
    scores, decisions = model.verify_batch(wavs, others, threshold=0.5)
    accelerate(model, threads=1)
    found = model.encode_batch(wavs)
    assert (found - expected).norm() < 0.02 * expected.norm()
    fast, same = model.verify_batch(wavs, others, threshold=0.5)
    assert torch.allclose(fast, scores, atol=0.01)
    assert torch.equal(same, decisions)
    layers = {row.name: row for row in runtime_report(model).layers}
    run = [r for r in layers.values() if r.name.startswith("embedding_model")]
    assert all(row.precision == "int8" for row in run)
    assert layers["classifier"].precision == "not run"
    assert json.dumps(runtime_report(model).to_dict())


def test_quantize_then_accelerate_then_restore():
    """Restoring the float model brings plain torch back, not stale results."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    x = torch.randn(4, 16)
    with torch.no_grad():
        floats = model(x)
        result = quantize(model, [x], bits="W4A4", progress=False)
        quantized = model(x)
        accelerate(model, threads=1)
        assert torch.allclose(model(x), quantized, atol=1e-5)
        assert not torch.allclose(quantized, floats, atol=1e-3)
        result.restore()
        assert torch.equal(model(x), floats)
