"""A tiny encoder and synthetic recordings for the tests of SUPERB."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
from speechbrain.utils import logger

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "SUPERB"
WORDS = ("go", "up")
SMALL = {
    "model_type": "wav2vec2",
    "do_normalize": True,
    "conv_dim": [16] * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def write_tone(path, seed, seconds=0.4):
    """Write a noisy tone, another one for each seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 90 * (seed % 20)) * time)
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave + 0.05 * rng.standard_normal(len(time)), 16000)


def write_commands(folder, speakers=25):
    """Write clips as Speech Commands has them."""
    for speaker in range(speakers):
        for number, word in enumerate(WORDS):
            path = folder / word / f"{speaker:08x}_nohash_0.wav"
            write_tone(path, 7 * number + speaker)


def write_voxceleb(folder, speakers=5, utterances=10):
    """Write recordings as VoxCeleb has them; the first two are in trials."""
    for speaker in range(speakers):
        for number in range(utterances):
            path = folder / "wav" / f"id{speaker}" / "a" / f"{number}.wav"
            write_tone(path, 3 * speaker + number, 0.3 + 0.02 * number)
    (folder / "veri_test.txt").write_text(
        "1 id0/a/0.wav id0/a/1.wav\n1 id1/a/0.wav id1/a/1.wav\n"
        "0 id0/a/0.wav id1/a/1.wav\n0 id1/a/0.wav id0/a/1.wav\n"
    )


def run_recipe(monkeypatch, task, hparams, **overrides):
    """Run a recipe's script in this process, as from its folder."""
    folder = FOLDER / task
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    options = [f"--{k}={v}" for k, v in overrides.items()]
    argv = ["train.py", f"hparams/{hparams}", *options, "--noprogressbar"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    # Other tests keep their logs, and nobody waits for a list of packages
    monkeypatch.setattr(logger, "setup_logging", lambda *args: None)
    monkeypatch.setattr(logger, "get_environment_description", lambda: "")
    runpy.run_path("train.py", run_name="__main__")


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
