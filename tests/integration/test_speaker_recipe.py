"""The speaker recipe from end to end, on a few speakers."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speechbrain.dataio.audio_io import info
from speechbrain.inference.speaker import SpeakerRecognition

from speechbrain_stablequant import (
    QuantizationPlan,
    accelerate,
    read_header,
    runtime_report,
)
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.publishing import PublishOptions, make_folder
from tests.integration import folders
from tests.integration.real_data import data_folder, run_recipe

RECIPE = (
    Path(__file__).resolve().parents[2] / "recipes" / "VoxCeleb" / "SpeakerRec"
)
CHANNELS, UTTERANCES = 64, 4
TRAINING, DEV, TEST = 5, 4, 4
METRICS = {"EER", "minDCF"}


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory):
    """Link a few speakers, and write trials over the last of them."""
    source = data_folder("VoxCeleb", tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("tiny") / "VoxCeleb"
    chosen = {}
    for speaker in sorted((source / "wav").iterdir()):
        wavs = [p for p in sorted(speaker.glob("*/*.wav")) if _is_short(p)]
        if len(wavs) >= UTTERANCES and len(chosen) < TRAINING + DEV + TEST:
            chosen[speaker.name] = wavs[:UTTERANCES]
    if len(chosen) < TRAINING + DEV + TEST:
        pytest.skip(f"{source} has too few speakers with short utterances")
    names = {}
    for speaker, wavs in chosen.items():
        names[speaker] = [p.relative_to(source / "wav") for p in wavs]
        for name in names[speaker]:
            link = folder / "wav" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / "wav" / name).resolve())
    test = [(s, n) for s in list(names)[-TEST:] for n in names[s]]
    lines = [
        f"{int(a == b)} {first} {second}\n"
        for i, (a, first) in enumerate(test)
        for b, second in test[i + 1 :]
    ]
    (folder / "veri_test.txt").write_text("".join(lines))
    return folder


def _is_short(path):
    return 2 < info(str(path)).duration < 5


def train(voxceleb, out, flags=(), **overrides):
    overrides = {
        "data_folder": voxceleb,
        "output_folder": out,
        "num_speakers": TRAINING + DEV,
        "dev_speakers": DEV,
        "dev_prefix": '""',
        "number_of_epochs": 1,
        "batch_size": 4,
        "step_size": 4,
        "channels": CHANNELS,
        "ptq_method": "uniform",
        **overrides,
    }
    script = "train_speaker_embeddings.py"
    yaml = RECIPE / "hparams" / "train_ecapa_tdnn_mini.yaml"
    run_recipe(RECIPE, script, yaml, flags=flags, **overrides)


@pytest.fixture(scope="module")
def experiment(voxceleb, tmp_path_factory):
    out = tmp_path_factory.mktemp("speaker") / "out"
    train(voxceleb, out)
    return out


@pytest.fixture(scope="module")
def publication(experiment, tmp_path_factory):
    """Publish as the README says."""
    output = tmp_path_factory.mktemp("hub") / "published"
    return make_folder(experiment, PublishOptions(output=str(output)))


@pytest.fixture
def published(publication):
    return publication.folder.path


@pytest.fixture
def recipe(monkeypatch):
    """Make the recipe's modules importable, as its scripts see them."""
    monkeypatch.syspath_prepend(str(RECIPE))
    import speaker_verification

    return speaker_verification


def sounds(voxceleb, count):
    wavs = sorted(voxceleb.glob("wav/*/*/*.wav"))
    return wavs[:: len(wavs) // count][:count]


def test_both_passes_are_reported(experiment):
    found = folders.report(experiment)
    (test,) = found["tests"]
    assert set(test["metrics"]) >= METRICS
    for name in METRICS:
        for value in ("float", "quantized"):
            assert test["metrics"][name][value] >= 0
    assert test["metrics"]["EER"]["float"] <= 100  # in percent
    assert [file["name"] for file in found["files"]] == ["embedding_model"]
    assert found["unreached_layers"] == []
    assert test["runtime"]["num_int8"] == test["runtime"]["num_planned"] > 30
    log = (experiment / "train_log.txt").read_text()
    assert log.count("valid EER") == 1
    assert log.count("test EER") == 2


def test_each_pass_has_its_own_scores(voxceleb, experiment):
    trials = (voxceleb / "veri_test.txt").read_text().splitlines()
    texts = [
        (experiment / name).read_text()
        for name in ("scores.txt", "scores_ptq.txt")
    ]
    for text in texts:
        assert len(text.splitlines()) == len(trials)
    assert texts[0] != texts[1]


def test_speakers_are_kept_apart(experiment):
    """Nobody is trained on who is validated or tested on."""
    speakers = {
        name: {
            line.split("/")[0]
            for line in (experiment / "save" / f"{name}.csv")
            .read_text()
            .splitlines()[1:]
        }
        for name in ("train", "dev", "test")
    }
    assert [len(s) for s in speakers.values()] == [TRAINING, DEV, TEST]
    assert len(set.union(*speakers.values())) == TRAINING + DEV + TEST


def test_checkpoint_is_float_and_the_only_one(experiment):
    (kept,) = (experiment / "save").glob("CKPT+*")
    state = torch.load(kept / "embedding_model.ckpt", weights_only=True)
    weight = state["mfa.conv.conv.weight"]
    assert len(weight.unique()) > weight.numel() / 2


def test_trials_are_scored_as_in_the_recipe(publication):
    """By stock SpeakerRecognition in a clean process; the recipe pads."""
    check = publication.check
    assert (publication.interface, check.metric) == (
        "SpeakerRecognition",
        "score",
    )
    assert check.items >= 8
    assert check.published < 0.05
    assert set(publication.folder.files()) == {
        *("README.md", "hyperparams.yaml", "plan.json", "report.json"),
        *("report.html", "example.wav", "embedding_model.ckpt"),
        "normalizer.ckpt",
    }


def test_classifier_of_the_same_run(experiment, tmp_path):
    options = PublishOptions(
        output=str(tmp_path / "hub"), interface="EncoderClassifier"
    )
    made = make_folder(experiment, options)
    labels = {found["label"] for found in made.check.results.values()}
    train = (experiment / "save" / "train.csv").read_text().splitlines()[1:]
    assert labels <= {line.split("/")[0] for line in train}
    assert labels


def test_published_model_is_the_quantized_one(
    voxceleb, experiment, published, recipe
):
    """Bit for bit what the float checkpoint gives under the plan."""
    paths = sounds(voxceleb, 3)
    (kept,) = (experiment / "save").glob("CKPT+*")
    hparams = {"source": str(kept), "channels": CHANNELS}
    memory = recipe.load_model(hparams, {})
    loaded = SpeakerRecognition.from_hparams(source=str(published))
    wavs = [memory.load_audio(str(path)) for path in paths]
    floats = [memory.encode_batch(wav) for wav in wavs]
    plan = QuantizationPlan.load(experiment / "ptq" / "plan.json")
    with Conversion(memory.mods) as conversion:
        conversion.apply_plan(plan)
        expected = [memory.encode_batch(wav) for wav in wavs]
        scores = [memory.verify_files(str(paths[0]), str(p)) for p in paths]
    for wav, value, other in zip(wavs, expected, floats):
        assert torch.equal(loaded.encode_batch(wav), value)
        assert not torch.equal(value, other)
    for path, (score, decision) in zip(paths, scores):
        found = loaded.verify_files(str(paths[0]), str(path))
        assert torch.equal(found[0], score)
        assert torch.equal(found[1], decision)
    assert scores[0][0] > 0.999


def test_published_model_on_integer_kernels(voxceleb, published):
    loaded = SpeakerRecognition.from_hparams(source=str(published))
    first, *_, last = map(str, sounds(voxceleb, 3))
    wav = loaded.load_audio(first)
    expected = loaded.encode_batch(wav)
    score, decision = loaded.verify_files(first, last)
    accelerate(loaded, threads=1)
    found = loaded.encode_batch(wav)
    assert (found - expected).norm() < 0.02 * expected.norm()
    fast, same = loaded.verify_files(first, last)
    assert torch.allclose(fast, score, atol=0.02)
    assert torch.equal(same, decision)
    report = runtime_report(loaded)
    planned = read_header(published / "embedding_model.ckpt")["plan"].layers
    assert report.num_int8 == report.num_planned == len(planned)


def test_verification_script(voxceleb, experiment, published, tmp_path):
    """On the published folder it gives the recipe's quantized result."""
    out = tmp_path / "verification"
    run_recipe(
        RECIPE,
        "speaker_verification.py",
        RECIPE / "hparams" / "verification_ecapa.yaml",
        data_folder=voxceleb,
        output_folder=out,
        source=published,
        runtime="openvino",
    )
    log = (out / "log.txt").read_text()
    assert "layers executed in int8" in log
    found = folders.report(experiment)["tests"][0]["metrics"]["EER"]
    line = (out / "verification_log.txt").read_text()
    assert "EER" in line
    assert "minDCF" in line
    eer = float(line.partition("test EER: ")[2].partition(",")[0])
    assert eer == pytest.approx(found["quantized"], abs=5)  # padding differs
    scores = [
        dict(_scores(path))
        for path in (out / "scores.txt", experiment / "scores_ptq.txt")
    ]
    assert scores[0].keys() == scores[1].keys()
    for trial, score in scores[0].items():
        assert score == pytest.approx(scores[1][trial], abs=0.05)


def _scores(path):
    for line in path.read_text().splitlines():
        *trial, score = line.split()
        yield tuple(trial), float(score)


@pytest.mark.parametrize("name", ["save", "nowhere/at/all"])
def test_wrong_source_says_what_to_give(experiment, recipe, name):
    hparams = {"source": str(experiment / name), "channels": CHANNELS}
    with pytest.raises(FileNotFoundError, match=r"CKPT|user/repository"):
        recipe.load_model(hparams, {})


def test_score_normalization(voxceleb, experiment, recipe):
    """With impostors of the training set; without them it says so."""
    (kept,) = (experiment / "save").glob("CKPT+*")
    hparams = {
        "source": str(kept),
        "channels": CHANNELS,
        "data_folder": str(voxceleb),
        "verification_file": str(voxceleb / "veri_test.txt"),
        "max_seconds": 2.0,
        "score_norm": "s-norm",
        "cohort_annotation": str(experiment / "save" / "train.csv"),
        "cohort_utterances": 12,
        "cohort_size": 6,
        "seed": 1,
        "dataloader_opts": {"batch_size": 8},
    }
    model = recipe.load_model(hparams, {})
    normed = recipe.verify(hparams, model).summarize()
    plain = recipe.verify({**hparams, "score_norm": None}, model).summarize()
    assert set(normed) >= METRICS
    assert normed != plain
    with pytest.raises(ValueError, match="cohort_annotation"):
        recipe.verify({**hparams, "cohort_annotation": None}, model)


@pytest.mark.slow
def test_again_under_a_budget(voxceleb, experiment, tmp_path):
    """``--test_only`` quantizes what was trained; so does the plan it made."""
    out = tmp_path / "out"
    shutil.copytree(experiment, out, copy_function=shutil.copy2)
    before = folders.saved(out)
    train(
        voxceleb,
        out,
        ["--test_only"],
        ptq_method="mixed_precision",
        ptq_candidates="[W4A8, W8A8, W32]",
        ptq_max_drop="null",
        ptq_target_size=0.28,
        ptq="{front_points: 3}",
    )
    found, first = folders.report(out), folders.report(experiment)
    assert folders.saved(out) == before
    eer = found["tests"][0]["metrics"]["EER"]["float"]
    assert eer == first["tests"][0]["metrics"]["EER"]["float"]
    assert found["search"]["metric"] == "EER"
    assert found["search"]["unit"] == "points"
    (file,) = found["files"]
    assert file["num_bytes"] < 0.28 * file["float_num_bytes"]
    path = out / "ptq" / "plan.json"
    plan = QuantizationPlan.load(path)
    assert len({layer.weight.bits for layer in plan.layers.values()}) > 1
    train(voxceleb, out, ["--test_only"], ptq=f"{{plan: {path}}}")
    again = folders.report(out)
    assert again["tests"][0]["metrics"] == found["tests"][0]["metrics"]
    assert again["files"][0]["num_bytes"] == file["num_bytes"]


def noises(path):
    """Write an archive like those that are downloaded."""
    wav = path.with_suffix(".wav")
    noise = np.random.default_rng(0).standard_normal(16000)
    soundfile.write(wav, 0.1 * noise, 16000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(wav, f"{path.stem}/{wav.name}")
    return path


def test_full_recipe(voxceleb, tmp_path):
    """The YAML for VoxCeleb itself, with archives that are on disk."""
    out = tmp_path / "out"
    yaml = RECIPE / "hparams" / "train_ecapa_tdnn_1024.yaml"
    trials = tmp_path / "trials.txt"
    run_recipe(
        RECIPE,
        "train_speaker_embeddings.py",
        yaml,
        data_folder=voxceleb,
        data_folder_noise=tmp_path / "noise",
        data_folder_rir=tmp_path / "rir",
        output_folder=out,
        NOISE_DATASET_URL=noises(tmp_path / "noise.zip"),
        RIR_DATASET_URL=noises(tmp_path / "rir.zip"),
        verification_url=voxceleb / "veri_test.txt",
        verification_file=trials,
        num_speakers=TRAINING + DEV,
        dev_speakers=DEV,
        dev_prefix='""',
        prepare_data="{dev_min_utterances: 4}",
        number_of_epochs=1,
        batch_size=4,
        num_workers=0,
        channels=CHANNELS,
        ptq="null",
    )
    assert trials.read_text() == (voxceleb / "veri_test.txt").read_text()
    assert (out / "scores.txt").is_file()
    assert not (out / "ptq").exists()
    log = (out / "train_log.txt").read_text()
    assert log.count("test EER") == 1
