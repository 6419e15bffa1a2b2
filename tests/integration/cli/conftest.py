"""Experiments and audio to run commands on."""

import dataclasses
import io

import numpy as np
import pytest
import soundfile
from hyperpyyaml import resolve_references

from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.cli import main
from speechbrain_stablequant.core.plan import QuantizationPlan
from tests.integration import toy
from tests.integration.conftest import copy_experiment


@pytest.fixture
def stablequant(capsys):
    """Run a command; returns exit code, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def experiment(block_run, tmp_path):
    """Return an experiment with the YAML that a recipe leaves in it."""
    folder = copy_experiment(block_run[0], tmp_path / "experiment")
    write_yaml(folder, toy.BLOCK)
    return folder


def write_yaml(folder, block) -> None:
    text = toy.YAML.read_text(encoding="utf-8") + block
    found = resolve_references(io.StringIO(text), f"output_folder: {folder}\n")
    (folder / "hyperparams.yaml").write_text(found.getvalue())


@pytest.fixture
def audio(tmp_path):
    """Write utterances to files, one of them at another rate and in stereo."""
    paths = []
    for i, (words, rate) in enumerate(
        [("bad face", 16000), ("cab", 16000), ("fed be ad", 32000)]
    ):
        sound = toy.sound(words, 7 + i, 0.05).numpy()
        if rate == 32000:
            sound = np.repeat(sound, 2)
            sound = np.stack([sound, sound], axis=1)
        path = tmp_path / f"{i}.{'flac' if i == 1 else 'wav'}"
        soundfile.write(path, sound, rate)
        paths.append(path)
    return paths


def edited_plan(experiment, folder):
    """Write a plan in which one layer has 4 bits."""
    plan = Experiment(experiment).plan
    layers = dict(plan.layers)
    layer = layers["enc.linear.w"]
    scheme = dataclasses.replace(layer.weight, bits=4)
    layers["enc.linear.w"] = dataclasses.replace(layer, weight=scheme)
    return QuantizationPlan(layers).save(folder / "edited.json")
