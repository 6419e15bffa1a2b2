"""Published models on the user's audio, also from a hub."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_stablequant.publishing.load import LoadedModel, load_model
from tests.integration import publishing, toy
from tests.integration.cli.test_export import publish_lm
from tests.integration.folders import strict_json
from tests.integration.hub.client import environment
from tests.integration.hub.server import Hub


def test_bench(published, audio, stablequant):
    threads = torch.get_num_threads()
    code, out, err = stablequant(
        "bench",
        published,
        *audio,
        "--reference",
        "--rounds",
        "2",
        "--batch-size",
        "2",
        "--threads",
        "1",
        "--json",
    )
    data = strict_json(out)
    assert code == 0
    assert "round 2 of 2" in err
    assert torch.get_num_threads() == threads
    rows = {row["name"]: row for row in data["candidates"]}
    assert set(rows) == {"PyTorch float32", "reference", "openvino", "onnx"}
    for row in rows.values():
        assert len(row["seconds"]) == 2
        assert row["agreement"]["utterances"] == 3
        assert row["real_time_factor"] == pytest.approx(
            row["median_seconds"] / data["audio_seconds"]
        )
    assert rows["PyTorch float32"]["times_as_fast"] == 1
    for name in ("openvino", "onnx"):
        same = rows[name]["agreement_with_reference"]["same_transcripts"]
        assert same >= 2  # a value between two levels may go either way
    found = rows["openvino"]["runtime"]
    assert found["num_int8"] == found["num_planned"] > 20
    lengths = [file["seconds"] for file in data["files"]]
    assert lengths[2] == pytest.approx(
        len(toy.sound("fed be ad", 9, 0.05)) / 16000, rel=0.01
    )


def test_bench_of_a_speaker_model(speaker, audio, stablequant):
    code, out, _ = stablequant(
        "bench", speaker[0], *audio, "--runtime", "openvino", "--rounds", "1"
    )
    assert code == 0
    assert "cosine" in out
    assert "layers executed in int8" in out


def test_bench_of_audio_that_cannot_be_heard(published, stablequant, tmp_path):
    nan = np.full(16000, np.nan, "float32")
    short, noise = np.zeros(300, "float32"), tmp_path / "noise.wav"
    for name, samples, words in (
        ("short.wav", short, "0.019 s of audio"),
        ("none.wav", short[:0], "0.000 s of audio"),
        ("nan.wav", nan, "not finite"),
    ):
        soundfile.write(tmp_path / name, samples, 16000, subtype="FLOAT")
        code, out, err = stablequant("bench", published, tmp_path / name)
        assert (code, out) == (2, "")
        assert name in err
        assert words in err
    noise.mkdir()
    code, _, err = stablequant("bench", published, noise)
    assert code == 2
    assert "is a folder" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no audio at all", "cannot be read as audio"), (None, "is not there")],
)
def test_bench_of_bad_audio(published, stablequant, tmp_path, content, words):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    code, out, err = stablequant("bench", published, path)
    assert (code, out) == (2, "")
    assert "bad.wav" in err
    assert words in err


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_bench_of_wrong_numbers(published, stablequant, audio, count):
    code, _, err = stablequant(
        "bench", published, audio[0], f"--rounds={count}"
    )
    assert code == 2
    assert "--rounds" in err


def test_unpublished_experiment(experiment, audio, stablequant, tmp_path):
    for arguments in (
        ["bench", experiment, audio[0]],
        ["export", experiment, "--to", "onnx", "--output", tmp_path / "o"],
    ):
        code, out, err = stablequant(*arguments)
        assert (code, out) == (2, "")
        assert "stablequant publish" in err


def test_experiment_published_into_its_folder(experiment):
    hub = publishing.publish_asr(experiment, experiment / "ptq" / "hub")
    model = load_model(str(experiment))
    assert isinstance(model, LoadedModel)
    assert (model.place, model.name) == (str(hub), "EncoderASR")


def test_published_folder_that_cannot_be_loaded(published, stablequant, audio):
    path = published / "hyperparams.yaml"
    changed = path.read_text().replace("!new:speechbrain.nnet", "!new:no.where")
    path.write_text(changed)
    code, _, err = stablequant("bench", published, audio[0])
    assert code == 2
    assert "cannot be loaded with EncoderASR" in err


def test_language_models_have_no_audio(stablequant, tmp_path, audio):
    folder = publish_lm(tmp_path / "lm")
    code, _, err = stablequant("bench", folder, audio[0])
    assert code == 2
    assert "takes no audio" in err


RUN_EACH = """
import contextlib, io, json, sys
from speechbrain_stablequant.cli import main
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def execute(hub, home, *commands):
    """Run commands in one process that knows of a hub: code, out and err."""
    texts = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, json.dumps(texts)],
        env=environment(hub.url, home),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_on_a_hub(published, audio, tmp_path):
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    files["large.bin"] = b"0" * 1000
    home = tmp_path / "home"
    home.mkdir()
    bench = ["bench", "ann/asr", audio[0], "--rounds", "1"]
    with Hub() as hub:
        hub.add("ann/asr", files)
        shown, measured, *refused = execute(
            hub,
            home,
            ["inspect", "ann/asr", "--json"],
            [*bench, "--runtime", "openvino", "--json"],
            ["inspect", "ann/none"],
            ["export", "ann/none", "--to", "onnx", "--output", "o"],
        )
    code, out, err = shown
    assert code == 0, err
    data = strict_json(out)
    assert data["kind"] == "published"
    assert {file["name"] for file in data["files"]} == {"wav2vec2", "model"}
    assert not list(home.rglob("large.bin"))
    code, out, err = measured
    assert code == 0, err
    assert strict_json(out)["interface"] == "EncoderASR"
    for code, out, err in refused:
        assert (code, out) == (2, "")
        assert "ann/none" in err
        assert "Traceback" not in err
