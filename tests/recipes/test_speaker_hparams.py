"""The speaker recipe's YAML files fit each other."""

import difflib
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml

ROOT = Path(__file__).resolve().parents[2]
HPARAMS = ROOT / "recipes" / "VoxCeleb" / "SpeakerRec" / "hparams"
TRAINING = sorted(HPARAMS.glob("train_*.yaml"))


def load(path, folder, **overrides):
    overrides = {"data_folder": folder, "output_folder": folder, **overrides}
    with open(path, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(HPARAMS.parent))


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_training_is_as_large_as_it_says(path, tmp_path):
    hparams = load(path, str(tmp_path))
    width = hparams["channels"]
    model = hparams["embedding_model"]
    assert model.mfa.conv.conv.out_channels == 3 * width
    assert model.fc.conv.out_channels == 192
    speakers = hparams["num_speakers"] - hparams["dev_speakers"]
    assert hparams["classifier"].weight.shape == (speakers, 192)
    settings = hparams["ptq"].settings
    assert settings.method == "mixed_precision"
    assert settings.objective == "EER"


@pytest.mark.parametrize("width", [512, 1024])
def test_inference_fits_training(width, tmp_path):
    """Same names and shapes, so that a checkpoint of one loads in the other."""
    training = load(HPARAMS / f"train_ecapa_tdnn_{width}.yaml", str(tmp_path))
    with open(HPARAMS / "inference.yaml", encoding="utf-8") as file:
        inference = load_hyperpyyaml(file, {"channels": width})

    def shapes(hparams):
        state = hparams["embedding_model"].state_dict()
        return {key: value.shape for key, value in state.items()}

    assert shapes(training) == shapes(inference)
    for name in ("compute_features", "mean_var_norm"):
        assert repr(training[name]) == repr(inference[name])
    assert training["n_mels"] == inference["n_mels"]


def test_widths_differ_in_the_width_only():
    big, small = (
        (HPARAMS / f"train_ecapa_tdnn_{width}.yaml").read_text().splitlines()
        for width in (1024, 512)
    )
    added = [
        line[1:]
        for line in difflib.unified_diff(big, small, n=0, lineterm="")
        if line.startswith("+") and not line.startswith("+++")
    ]
    assert [line.replace("512", "1024") for line in added] == [
        line for line in big if line not in small
    ]
    assert len(added) == 3


def test_the_same_options_are_flat_in_all(tmp_path):
    """One command line works with each of the three."""
    flat = [
        {key for key in load(path, str(tmp_path)) if key.startswith("ptq")}
        for path in TRAINING
    ]
    assert len(flat) == 3
    assert flat[0] == flat[1] == flat[2]
