"""Stock SpeechBrain loads from a hub what was uploaded there."""

import subprocess
import sys

import torch

from tests.integration import publishing
from tests.integration.hub.client import environment

LOAD = """
import sys, torch
from speechbrain.inference.ASR import EncoderASR
from speechbrain.inference.speaker import SpeakerRecognition
kind, inputs, outputs, savedir = sys.argv[1:]
wavs, lens = torch.load(inputs)
torch.set_num_threads(1)
if kind == "asr":
    model = EncoderASR.from_hparams(source="ann/asr", savedir=savedir)
    result = model.transcribe_batch(wavs, lens)[0]
else:
    model = SpeakerRecognition.from_hparams(
        source="ann/speaker", savedir=savedir
    )
    result = model.encode_batch(wavs)
torch.save(result, outputs)
"""


def load_elsewhere(hub, kind, tmp_path, wavs, lens):
    """Return what stock SpeechBrain computes, with nothing but the hub."""
    inputs, outputs = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save((wavs, lens), inputs)
    command = [sys.executable, "-c", LOAD, kind, inputs, outputs]
    env = environment(hub.url, tmp_path / "home")
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "saved")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(outputs)


def test_a_published_recognizer_transcribes(
    hub, publish, published, speech, tmp_path
):
    assert publish(published, repo="ann/asr")["error"] is None
    model = publishing.load_asr(published, tmp_path / "local")
    expected, _ = model.transcribe_batch(*speech)
    words = load_elsewhere(hub, "asr", tmp_path, *speech)
    assert words == expected
    assert any(words)


def test_a_published_speaker_model_embeds(hub, publish, speaker, tmp_path):
    folder, embed, _ = speaker
    assert publish(folder, repo="ann/speaker")["error"] is None
    wavs = publishing.voices(5)
    found = load_elsewhere(
        hub, "speaker", tmp_path, wavs, torch.ones(len(wavs))
    )
    assert torch.equal(found, embed(wavs))
    assert found.std() > 0
