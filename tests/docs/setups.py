"""Names and files that the snippets of the documentation start with."""

import shutil
from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio import audio_io
from torch import nn

from speechbrain_stablequant import quantize, save_quantized
from speechbrain_stablequant.models.multi_domain import MultiDomainLM
from tests.docs.markdown import ROOT
from tests.unit.models.multi_domain.models import VOCAB, transformer

RECOGNIZER = ROOT / "recipes/DigitStrings/ASR/CTC/hparams/inference.yaml"
SPEAKER_MODEL = ROOT / "recipes/VoxCeleb/SpeakerRec/hparams/inference.yaml"
PUBLISHED = Path("path/to/ptq/hub")


def model() -> dict:
    """Return a small network with calibration data and targets."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 256)]
    layers += [nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 4)]
    network = nn.Sequential(*layers).eval()
    data = [torch.randn(4, 8) for _ in range(8)]
    with torch.no_grad():
        targets = [network(x) for x in data]
    return {
        "torch": torch,
        "model": network,
        "batches": data,
        "targets": targets,
    }


def quantized_model() -> dict:
    """Return the same network, quantized."""
    names = model()
    quantize(names["model"], names["batches"], bits="W8A8", progress=False)
    return names


def checkpoint() -> dict:
    """Return a network of 4-bit weights that is also on disk."""
    names = model()
    found = quantize(names["model"], names["batches"], bits="W4A8")
    save_quantized(names["model"], "model.ckpt", found.plan)
    return names


def plan() -> dict:
    """Return nothing; a plan is on disk."""
    names = model()
    found = quantize(names["model"], names["batches"], bits="W8A8")
    found.plan.save("plan.json")
    return {}


def brain_script() -> dict:
    """Return nothing: the snippet is the head of a training script."""
    return {}


def language_model() -> dict:
    """Return a language model, and a domain on disk."""
    trunk = transformer()
    lm = MultiDomainLM(trunk, ["music"])
    lm.save_domain("music", "music.safetensors")
    tokens = torch.randint(1, VOCAB, (3, 7))
    return {"common_lm": transformer(), "tokens": tokens}


def quantized_language_model() -> dict:
    """Return the same with a trunk that was quantized since."""
    trunk = language_model()["common_lm"]
    quantize(trunk, bits="W4", progress=False)
    return {"quantized_lm": trunk}


def published_recognizer() -> dict:
    """Return speech, and a recognizer of random weights in a hub folder."""
    shutil.rmtree(PUBLISHED, ignore_errors=True)
    PUBLISHED.mkdir(parents=True)
    shutil.copy(RECOGNIZER, PUBLISHED / "hyperparams.yaml")
    torch.manual_seed(0)
    hparams = load_hyperpyyaml(RECOGNIZER.read_text())
    wavs, lengths = torch.randn(2, 8000), torch.tensor([1.0, 0.7])
    encoder = hparams["encoder"].eval()
    found = quantize(
        encoder, [(wavs, lengths)], lambda m, b: m(*b), progress=False
    )
    for part, module in (
        ("wav2vec2", hparams["wav2vec2"]),
        ("model", hparams["model"]),
    ):
        _save_part(module, found.plan, part, encoder)
    tokenizer = hparams["tokenizer"]
    tokenizer.update_from_iterable("ABCDEFGHIJKLMNOP", sequence_input=False)
    tokenizer.insert_blank(index=0)
    tokenizer.save(PUBLISHED / "tokenizer.ckpt")
    return {"wavs": wavs, "lengths": lengths}


def _save_part(module, plan, part, whole) -> None:
    """Save a part of a model with the part of the plan that is about it."""
    names = {id(m): name for name, m in module.named_modules()}
    layers = {
        names[id(m)]: plan.layers[name]
        for name, m in whole.named_modules()
        if id(m) in names and name in plan.layers
    }
    own = type(plan)(layers, plan.method)
    save_quantized(module, PUBLISHED / f"{part}.ckpt", own)


def published_speaker_model() -> dict:
    """Make a speaker model of random weights, and two recordings."""
    shutil.rmtree(PUBLISHED, ignore_errors=True)
    PUBLISHED.mkdir(parents=True)
    text = SPEAKER_MODEL.read_text().replace("channels: 1024", "channels: 64")
    (PUBLISHED / "hyperparams.yaml").write_text(text)
    torch.manual_seed(0)
    network = load_hyperpyyaml(text)["embedding_model"].eval()
    data = [torch.randn(1, 60, 80) for _ in range(4)]
    found = quantize(network, data, bits="W8A8", progress=False)
    save_quantized(network, PUBLISHED / "embedding_model.ckpt", found.plan)
    for name in ("one.wav", "other.wav"):
        audio_io.save(name, 0.1 * torch.randn(1, 16000), 16000)
    return {}
