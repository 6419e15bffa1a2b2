"""SpeechBrain's speaker recipes, unmodified, with a block appended.

``train_speaker_embeddings.py`` never evaluates, and
``speaker_verification_cosine.py`` has no Brain: it embeds with what a
pretrainer loads.
"""

import itertools
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from speechbrain_stablequant import QuantizationPlan, read_header
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing import PublishOptions, make_folder
from tests.integration import folders
from tests.integration.real_data import data_folder, recipe_folder, run_recipe

RECIPE = "VoxCeleb/SpeakerRec"
BLOCKS = Path(__file__).resolve().parents[2] / "hparams" / RECIPE
SPEAKERS, COPIES = 6, 4  # for training
TEST_SPEAKERS, TEST_UTTERANCES = 7, 4
SMALL = (
    "{channels: [64, 64, 64, 64, 192], attention_channels: 32, lin_neurons: 32}"
)


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    """Link a few speakers; those of the trials are not trained on."""
    recipe_folder(RECIPE)  # unpacking would be in vain without it
    source = data_folder("VoxCeleb", tmp_path_factory.mktemp("data")) / "wav"
    folder = tmp_path_factory.mktemp("speakers") / "VoxCeleb"
    chosen = (
        path
        for path in sorted(source.glob("ls*/*/*.wav"))
        if soundfile.info(path).duration > 6.5
    )
    for path in itertools.islice(chosen, SPEAKERS):
        for copy in ("", *map(str, range(1, COPIES))):  # for train and dev
            relative = path.relative_to(source)
            link(folder, relative.with_stem(f"{path.stem}{copy}"), path)
    tested = []
    for speaker in sorted(source.glob("so*"))[:TEST_SPEAKERS]:
        for path in sorted(speaker.rglob("*.wav"))[:TEST_UTTERANCES]:
            tested.append(str(path.relative_to(source)))
            link(folder, tested[-1], path)
    trials = [
        f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n"
        for a, b in itertools.combinations(tested, 2)
    ]
    (folder / "veri_test.txt").write_text("".join(trials))
    return folder


def link(folder, relative, path):
    target = folder / "wav" / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(path)


def noises(path):
    """Write an archive like those that the recipe downloads."""
    rng = np.random.default_rng(0)
    wav = path.with_suffix(".wav")
    soundfile.write(wav, 0.1 * rng.standard_normal(16000), 16000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(wav, f"{path.stem}/{wav.name}")
    return path


def appended(recipe, name, block, folder):
    """Write the recipe's YAML with a block of ours at its end."""
    path = folder / "ptq.yaml"
    text = (recipe / "hparams" / name).read_text()
    path.write_text(f"{text}\n{(BLOCKS / block).read_text()}")
    return path


@pytest.fixture(scope="module")
def trained(voxceleb, tmp_path_factory):
    """Train, and quantize after ``fit``; return the experiment's folder."""
    folder = tmp_path_factory.mktemp("training")
    recipe = recipe_folder(RECIPE)
    run_recipe(
        recipe,
        "train_speaker_embeddings.py",
        appended(
            recipe, "train_ecapa_tdnn.yaml", "ptq_train_ecapa.yaml", folder
        ),
        data_folder=voxceleb,
        output_folder=folder / "out",
        verification_file=voxceleb / "veri_test.txt",
        NOISE_DATASET_URL=noises(folder / "noise.zip"),
        RIR_DATASET_URL=noises(folder / "rir.zip"),
        embedding_model=SMALL,
        classifier="{input_size: 32}",
        out_n_neurons=40,
        number_of_epochs=2,
        batch_size=4,
        num_workers=0,
        split_ratio="[80, 20]",
        ptq_candidates="[W8A8, W16]",
        ptq_max_drop=5,
    )
    return folder / "out"


def best_checkpoint(trained):
    """Return folder and error rate of the best checkpoint."""
    found = {
        path.parent: yaml.safe_load(path.read_text())
        for path in (trained / "save").glob("CKPT+*/CKPT.yaml")
    }
    best = min(
        found, key=lambda p: (found[p]["ErrorRate"], -found[p]["unixtime"])
    )
    return best, found[best]["ErrorRate"]


@pytest.fixture(scope="module")
def verify(voxceleb, trained, tmp_path_factory):
    """Return a function that runs the verification, with a block or without."""
    recipe = recipe_folder(RECIPE)
    checkpoint, _ = best_checkpoint(trained)

    def run(block="ptq_verification_ecapa.yaml", **overrides):
        folder = tmp_path_factory.mktemp("verification")
        path = recipe / "hparams" / "verification_ecapa.yaml"
        if block is not None:
            path = appended(recipe, path.name, block, folder)
        run_recipe(
            recipe,
            "speaker_verification_cosine.py",
            path,
            data_folder=voxceleb,
            output_folder=folder / "out",
            verification_file=voxceleb / "veri_test.txt",
            pretrain_path=checkpoint,
            embedding_model=SMALL,
            cohort_size=10,
            # The model is hardly trained: by a tiny cohort of nearly equal
            # embeddings, rounding errors would be divided by almost nothing.
            score_norm="none",
            split_ratio="[80, 20]",
            **overrides,
        )
        return folder / "out"

    return run


@pytest.fixture(scope="module")
def float_scores(verify):
    return scores(verify(block=None))


def scores(out):
    """Return the scores of a run, after a look at what it has logged."""
    log = (out / "log.txt").read_text()
    assert re.search(r"EER\(%\)=\d+\.\d+", log)
    lines = (out / "scores.txt").read_text().splitlines()
    return np.array([float(line.split()[3]) for line in lines])


def check_close(quantized, floats):
    """Check that scores are those of the model, but not of the float one."""
    count = TEST_SPEAKERS * TEST_UTTERANCES
    assert len(quantized) == len(floats) == count * (count - 1) // 2
    assert not np.array_equal(quantized, floats)
    assert np.corrcoef(quantized, floats)[0, 1] > 0.99


# -- training -----------------------------------------------------------------


def test_best_checkpoint_is_quantized_after_fit(trained):
    best, error_rate = best_checkpoint(trained)
    found = folders.report(trained)
    assert found["weights"] == {
        "checkpoint": best.name,
        "key": "ErrorRate",
        "choice": "lowest",
        "value": error_rate,
    }
    assert found["search"]["joint"]["metric"] == "error"
    (validation,) = found["tests"]
    assert validation["name"] == "validation"
    assert validation["metrics"]["error"]["items"] > 0
    for name in ("error", "loss"):
        assert validation["metrics"][name]["float"] is not None
        assert validation["metrics"][name]["quantized"] is not None
    assert found["coverage"]["fraction"] >= 0.95
    assert found["unreached_layers"] == []
    chosen = found["search"]["chosen"]
    assert chosen["change"] <= 5
    assert set(chosen["bits"]) <= {"W8A8", "W16"}
    log = (trained / "train_log.txt").read_text()
    assert "PTQ mixed_precision, max_drop 5" in log


def test_training_leaves_a_plan_and_checkpoints(trained):
    names = {file["name"] for file in folders.report(trained)["files"]}
    assert names == {"embedding_model", "classifier"}
    for name in names:
        path = trained / "ptq" / "checkpoint" / f"{name}.ckpt"
        assert read_header(path)["plan"].layers
    plan = QuantizationPlan.load(trained / "ptq" / "plan.json")
    kinds = {layer.kind for layer in plan.layers.values()}
    assert kinds == {"Conv1d", "Classifier"}


# -- verification --------------------------------------------------------------


def test_verification_runs_on_integer_kernels(verify, float_scores):
    out = verify()
    check_close(scores(out), float_scores)
    found = folders.report(out)
    assert found["coverage"]["fraction"] == 1.0
    runtime = found["runtime"]
    assert runtime["num_int8"] == runtime["num_planned"] == 38
    log = (out / "log.txt").read_text()
    assert "38 of 38 layers executed in int8" in log
    assert "Inlined graph" not in log
    header = read_header(out / "ptq" / "checkpoint" / "embedding_model.ckpt")
    assert len(header["plan"].layers) == 38


def test_verified_model_is_published(verify, float_scores, tmp_path):
    """The script has no Brain, and its pretrainer has the model."""
    out = verify(ptq_runtime="reference")
    options = PublishOptions(output=str(tmp_path / "hub"))
    made = make_folder(out, options)
    assert (made.interface, made.check.metric) == (
        "SpeakerRecognition",
        "score",
    )
    assert made.check.items == 12
    assert made.check.published < 0.05
    with pytest.raises(PublishError, match="--include embedding_model"):
        make_folder(out, replace(options, repo="me/speakers"))


def test_classifier_with_more_classes_than_names(trained, tmp_path):
    """Trained for 40 speakers on a few: its classes have no names."""
    options = PublishOptions(output=str(tmp_path / "hub"))
    with pytest.raises(PublishError, match="has no name for"):
        make_folder(trained, options)
    assert not (tmp_path / "hub").exists()


def test_verification_applies_the_plan_of_the_training(
    trained, verify, float_scores
):
    """The plan has a classifier as well, which verification does not load."""
    path = trained / "ptq" / "plan.json"
    out = verify(ptq_plan=path, ptq_runtime="reference")
    check_close(scores(out), float_scores)
    theirs = QuantizationPlan.load(path).layers
    ours = QuantizationPlan.load(out / "ptq" / "plan.json").layers
    assert ours == {
        name: layer
        for name, layer in theirs.items()
        if name.startswith("embedding_model.")
    }
    assert len(ours) < len(theirs)
    log = (out / "log.txt").read_text()
    left_out = len(theirs) - len(ours)
    assert f"left out {left_out} layers of classifier" in log
