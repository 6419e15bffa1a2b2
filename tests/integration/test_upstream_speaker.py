"""The ECAPA-TDNN recipe, unmodified: it trains and never evaluates."""

import zipfile

import numpy as np
import pytest
import soundfile

from speechbrain_stablequant import QuantizationPlan, read_header

from . import folders, toy
from .real_data import data_folder, recipe_folder, run_recipe

SPEAKERS, COPIES = 5, 4


@pytest.fixture
def voxceleb(tmp_path, tmp_path_factory):
    """Link a few speakers with long utterances; one is for verification."""
    source = data_folder("VoxCeleb", tmp_path_factory.mktemp("data"))
    chosen = []
    for path in sorted(source.glob("wav/ls*/*/*.wav")):
        if soundfile.info(path).duration > 6.5 and len(chosen) <= SPEAKERS:
            chosen.append(path.relative_to(source / "wav"))
    folder = tmp_path / "VoxCeleb"
    for path in chosen:
        for copy in ("", *map(str, range(1, COPIES))):  # for train and dev
            link = folder / "wav" / path.with_stem(f"{path.stem}{copy}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source / "wav" / path)
    trial = f"1 {chosen[-1]} {chosen[-1]}\n"
    (folder / "veri_test.txt").write_text(trial)
    return folder


def noises(path):
    """Write an archive like those that the recipe downloads."""
    rng = np.random.default_rng(0)
    wav = path.with_suffix(".wav")
    soundfile.write(wav, 0.1 * rng.standard_normal(16000), 16000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(wav, f"{path.stem}/{wav.name}")
    return path


def test_ecapa_is_quantized_after_fit(voxceleb, tmp_path):
    recipe = recipe_folder("VoxCeleb/SpeakerRec")
    out, yaml = tmp_path / "out", tmp_path / "train.yaml"
    text = (recipe / "hparams" / "train_ecapa_tdnn.yaml").read_text()
    yaml.write_text(f"{text}{toy.BLOCK}    when: fit\n")
    run_recipe(
        recipe,
        "train_speaker_embeddings.py",
        yaml,
        data_folder=voxceleb,
        output_folder=out,
        verification_file=voxceleb / "veri_test.txt",
        NOISE_DATASET_URL=noises(tmp_path / "noise.zip"),
        RIR_DATASET_URL=noises(tmp_path / "rir.zip"),
        embedding_model=(
            "{channels: [64, 64, 64, 64, 192], attention_channels: 32, "
            "lin_neurons: 32}"
        ),
        classifier="{input_size: 32}",
        out_n_neurons=40,
        number_of_epochs=1,
        batch_size=4,
        num_workers=0,
        split_ratio="[80, 20]",
    )
    found = folders.report(out)
    assert found["tests"] == []
    assert found["search"]["joint"]["metric"] == "error"
    assert found["coverage"]["fraction"] >= 0.95
    assert found["unreached_layers"] == []
    names = {file["name"] for file in found["files"]}
    assert names == {"embedding_model", "classifier"}
    for name in names:
        path = out / "ptq" / "checkpoint" / f"{name}.ckpt"
        assert read_header(path)["plan"].layers
    plan = QuantizationPlan.load(out / "ptq" / "plan.json")
    kinds = {layer.kind for layer in plan.layers.values()}
    assert kinds == {"Conv1d", "Classifier"}
    assert len(list((out / "save").glob("CKPT+*"))) == 1
    assert "PTQ W8A8 stablequant" in (out / "train_log.txt").read_text()
