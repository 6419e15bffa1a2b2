"""Experiment folders as SpeechBrain's recipes leave them: YAML and manifests."""

import csv
import io
from pathlib import Path

import soundfile
from hyperpyyaml import resolve_references

from speechbrain_stablequant.publishing import PublishOptions
from tests.integration import toy
from tests.integration.conftest import copy_experiment

FILES = {
    *("README.md", "hyperparams.yaml", "plan.json", "report.json"),
    *("example.wav", "wav2vec2.ckpt", "model.ckpt", "tokenizer.ckpt"),
}
MANIFESTS = """
test_csv:
   - !ref <output_folder>/test-clean.csv
   - !ref <output_folder>/test-other.csv
"""


def as_recipe(run: Path, folder: Path, extra: str = "") -> Path:
    """Copy a run of the toy recipe, with what a recipe would have there too."""
    copy_experiment(run, folder)
    text = toy.YAML.read_text() + MANIFESTS + extra + toy.BLOCK
    overrides = {"output_folder": str(folder)}
    resolved = resolve_references(io.StringIO(text), overrides)
    (folder / "hyperparams.yaml").write_text(resolved.read())
    hparams = toy.load(folder, block="")
    for name, items in toy.datasets(hparams).items():
        if name.startswith("test"):
            write_manifest(folder, name, items)
    return folder


def write_manifest(folder: Path, name: str, items) -> None:
    """Write the sounds of a set and the table of them."""
    audio = folder / "audio"
    audio.mkdir(exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "duration", "wav", "wrd"])
        for item in items:
            path = audio / f"{item['id']}.wav"
            soundfile.write(path, item["sig"].numpy(), toy.RATE, "FLOAT")
            words = " ".join(item["words"])
            seconds = len(item["sig"]) / toy.RATE
            writer.writerow([item["id"], seconds, path, words])


def unchecked(**options):
    """Return options without the check in a clean process, which takes long."""
    return PublishOptions(no_check=True, **options)
