"""Experiments as small as publishing can read them."""

import json

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize, save_quantized
from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.publishing.inventory import Recipe

REPORT = {"label": "W8", "tests": [], "coverage": {}, "files": []}


@pytest.fixture
def make_recipe(tmp_path):
    """Return a function: YAML and names of files give a `Recipe`."""

    def make(yaml, quantized=("model",), others=None):
        folder = tmp_path / "experiment"
        checkpoint = folder / "ptq" / "checkpoint"
        checkpoint.mkdir(parents=True)
        for name in quantized:
            model = nn.Sequential(nn.Linear(4, 4))
            torch.manual_seed(0)
            result = quantize(model, [], bits="W8", method="uniform")
            save_quantized(model, checkpoint / f"{name}.ckpt", result.plan)
        for name, text in (others or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (folder / "ptq" / "report.json").write_text(json.dumps(REPORT))
        result.plan.save(folder / "ptq" / "plan.json")
        (folder / "hyperparams.yaml").write_text(yaml)
        return Recipe(Experiment(folder))

    return make
