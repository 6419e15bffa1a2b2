"""An experiment becomes a folder that a stranger loads, or it does not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from speechbrain.inference.ASR import EncoderASR

from speechbrain_stablequant import (
    QuantizationPlan,
    read_header,
    save_quantized,
)
from speechbrain_stablequant.cli import main
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.publishing import (
    About,
    PublishOptions,
    interface_of,
    load,
    make_folder,
)

from . import folders, toy
from .experiments import as_recipe

FILES = {
    *("README.md", "hyperparams.yaml", "plan.json", "report.json"),
    *("example.wav", "wav2vec2.ckpt", "model.ckpt", "tokenizer.ckpt"),
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(block_run, tmp_path_factory):
    """Return the experiment of the smallest block."""
    folder = tmp_path_factory.mktemp("publish") / "experiment"
    return as_recipe(block_run[0], folder)


@pytest.fixture(scope="module")
def publication(run, tmp_path_factory):
    about = About(repo="me/toy", language="en", license="apache-2.0")
    output = tmp_path_factory.mktemp("hub") / "toy"
    return make_folder(run, PublishOptions(about=about, output=str(output)))


@pytest.fixture
def experiment(run, tmp_path):
    """Return a copy to spoil; its YAML names the folder of the original."""
    folder = tmp_path / "experiment"
    shutil.copytree(run, folder)
    return folder


def unchecked(**knobs):
    return PublishOptions(check=False, **knobs)


# -- what is made ------------------------------------------------------------


def test_folder_has_what_a_stranger_needs(publication):
    assert set(publication.folder.files()) == FILES
    assert publication.interface == "EncoderASR"
    assert interface_of(publication.folder.path).name == "EncoderASR"


def test_rescored_utterances_are_as_in_the_recipe(publication, run):
    """But for padding: the recipe scores batches, a stranger one file."""
    check = publication.check
    items = json.loads((run / "ptq" / "items.json").read_text())
    recorded = {
        key: (errors, words)
        for test in items.values()
        for key, errors, words in test["WER"]["quantized"]
    }
    results = check.results
    assert check.metric == "WER"
    assert len(results) == check.items == 12
    assert all(recorded[key][1] == results[key]["WER"][1] for key in results)
    words = sum(recorded[key][1] for key in results)
    before = sum(recorded[key][0] for key in results)
    after = sum(found["WER"][0] for found in results.values())
    assert check.recorded == 100 * before / words
    assert check.published == 100 * after / words
    same = sum(recorded[key][0] == results[key]["WER"][0] for key in results)
    assert check.same == same >= 8


def test_nothing_of_this_machine_is_in_it(publication, run):
    for name in publication.folder.files():
        data = (publication.folder.path / name).read_bytes()
        assert str(run).encode() not in data, name
        assert b"optimizer" not in data, name


def test_the_yaml_defines_no_more_than_inference_needs(publication):
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    for name in ("opt_class", "checkpointer", "train_logger", "ptq:", "seed"):
        assert name not in text
    assert "freeze" not in text


def test_stock_speechbrain_transcribes(publication, tmp_path):
    folder = publication.folder.path
    model = EncoderASR.from_hparams(str(folder), savedir=str(tmp_path / "s"))
    example = next(iter(publication.check.results.values()))
    text = model.transcribe_file(str(folder / "example.wav"))
    assert set(text) <= set(toy.ALPHABET + " ")
    assert text
    assert type(example["text"]) is str
    ours = load(str(folder), str(tmp_path / "t"))
    assert isinstance(ours, EncoderASR)


def test_the_card_has_the_measured_figures(publication, run):
    path = publication.folder.path / "README.md"
    card = ModelCard.load(path)
    tests = folders.report(run)["tests"]
    found = {
        (r.dataset_split, r.metric_type): r.metric_value
        for r in card.data.eval_results
    }
    for test in tests:
        wer = test["metrics"]["WER"]["quantized"]
        assert found[test["name"], "wer"] == round(wer, 4)
    assert card.data.library_name == "speechbrain"
    assert card.data.language == "en"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert 'source="me/toy"' in card.text
    for file in folders.report(run)["files"]:
        assert f"`{file['name']}.ckpt`" in card.text
    assert f"{publication.check.same} of 12 results the same" in card.text


def test_the_plan_is_that_of_the_run(publication, run):
    assert QuantizationPlan.load(
        publication.folder.path / "plan.json"
    ) == QuantizationPlan.load(run / "ptq" / "plan.json")


# -- again, and elsewhere ------------------------------------------------------


def test_made_again_it_replaces_its_own(experiment):
    first = make_folder(experiment, unchecked())
    (experiment / "ptq" / "hub" / "example.wav").rename(
        experiment / "taken.wav"
    )
    again = make_folder(experiment, unchecked())
    assert again.folder.sizes() == first.folder.sizes()


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_what_people_wrote_there_is_not_lost(experiment, name):
    folder = make_folder(experiment, unchecked()).folder.path
    (folder / name).write_text("written by hand")
    with pytest.raises(PublishError, match=f"{name} was changed or added"):
        make_folder(experiment, unchecked())
    assert (folder / name).read_text() == "written by hand"
    assert not list(folder.parent.glob(".hub-*"))


def test_a_folder_of_others_is_not_touched(experiment, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(PublishError, match="not made by publishing"):
        make_folder(experiment, unchecked(output=str(other)))
    assert [p.name for p in other.iterdir()] == ["file"]


# -- what is refused -----------------------------------------------------------


def test_another_model_than_was_measured(experiment):
    """The files load, but somebody has put others in their place."""
    hparams = toy.load(experiment, block="")
    torch.manual_seed(5)
    model = hparams["model"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    path = experiment / "ptq" / "checkpoint" / "model.ckpt"
    plan = read_header(path)["plan"]
    with Conversion(model) as conversion:
        conversion.apply_plan(plan)
        save_quantized(model, path, plan)
    with pytest.raises(
        PublishError, match="it is not what was measured: .*WER"
    ):
        make_folder(experiment)
    assert not (experiment / "ptq" / "hub").exists()


def test_reference_texts_that_are_not_found_are_said(experiment):
    for path in experiment.glob("test-*.csv"):
        path.write_text(path.read_text().replace("wrd", "spoken"))
    check = make_folder(yaml_of(experiment)).check
    assert check.metric is None
    assert "NOT SCORED: the manifest has no column" in check.line()


def yaml_of(experiment):
    """Let the YAML of a copy name the copy."""
    path = experiment / "hyperparams.yaml"
    text = path.read_text()
    (original,) = {
        line.partition(": ")[2]
        for line in text.splitlines()
        if line.startswith("output_folder: ")
    }
    path.write_text(text.replace(original, str(experiment)))
    return experiment


@pytest.mark.parametrize("name", ["plan.json", "report.json"])
def test_parts_of_different_runs(experiment, name):
    path = experiment / "ptq" / name
    text = path.read_text()
    old, new = {
        "plan.json": ('"bits": 8', '"bits": 7'),
        "report.json": ('"num_bytes": ', '"num_bytes": 1'),
    }[name]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(PublishError, match=f"{name} is .*once more"):
        make_folder(experiment, unchecked())


def test_a_damaged_file(experiment):
    path = experiment / "ptq" / "checkpoint" / "wav2vec2.ckpt"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PublishError, match="does not match its own hash"):
        make_folder(experiment)
    assert not (experiment / "ptq" / "hub").exists()


def test_parameters_that_nothing_loads(experiment, tmp_path):
    text = (make_folder(experiment, unchecked()).folder.path) / (
        "hyperparams.yaml"
    )
    kept = [
        line
        for line in text.read_text().splitlines()
        if line not in ("      model: !ref <model>",)
        and "model: !name" not in line
    ]
    (tmp_path / "inference.yaml").write_text("\n".join(kept))
    options = PublishOptions(hyperparams=str(tmp_path / "inference.yaml"))
    shutil.rmtree(experiment / "ptq" / "hub")
    with pytest.raises(PublishError, match="no file has values for .*enc"):
        make_folder(experiment, options)


def test_a_yaml_of_the_user(experiment, publication, tmp_path):
    path = tmp_path / "inference.yaml"
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    path.write_text(f"# written by hand\n{text}")
    made = make_folder(experiment, PublishOptions(hyperparams=str(path)))
    published = made.folder.path / "hyperparams.yaml"
    assert published.read_text() == path.read_text()
    assert made.check.same == publication.check.same


def test_a_yaml_with_a_path_of_this_machine(experiment, publication, tmp_path):
    path = tmp_path / "inference.yaml"
    text = (publication.folder.path / "hyperparams.yaml").read_text()
    path.write_text(f"{text}\nwhere: {experiment.resolve()}/data\n")
    options = unchecked(hyperparams=str(path))
    with pytest.raises(PublishError, match="paths of this machine"):
        make_folder(experiment, options)
    assert not (experiment / "ptq" / "hub").exists()


def test_modules_that_are_not_known(block_run, tmp_path):
    extra = "adapter: !new:torch.nn.ReLU\n"
    folder = as_recipe(block_run[0], tmp_path / "experiment", extra)
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(text.replace("\nmodules:", "\nmodules:\n  adapter: {}", 1))
    with pytest.raises(PublishError, match="known to have: adapter"):
        make_folder(folder, unchecked())


def test_a_tokenizer_without_labels(experiment):
    """Some recipes save one that they never fill; the labels are in save/."""
    empty = "================\n'starting_index' => 0\n"
    path = experiment / "ptq" / "checkpoint" / "tokenizer.ckpt"
    labels = experiment / "save" / "label_encoder.txt"
    assert labels.is_file()
    path.write_text(empty)
    made = make_folder(experiment, unchecked())
    assert (made.folder.path / "tokenizer.ckpt").read_bytes() == (
        labels.read_bytes()
    )
    labels.unlink()
    with pytest.raises(PublishError, match="has no labels"):
        make_folder(experiment, unchecked())


# -- the commands ----------------------------------------------------------------


def test_dry_run_lists_files_and_sizes(experiment, capsys):
    command = ["publish", str(experiment), "--repo", "me/toy", "--dry-run"]
    assert main([*command, "--json", "--no-check"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = Path(result["folder"])
    assert result["files"] == {
        name: (folder / name).stat().st_size for name in sorted(FILES)
    }
    assert result["uploaded"] is None
    assert any("--license" in note for note in result["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is not there"),
        (["--interface", "EncoderAST"], "Did you mean 'EncoderASR'"),
        (["--interface", "SpeakerRecognition"], "module embedding_model"),
        (
            ["--interface", "WaveformEncoder", "--private"],
            "name it with --repo",
        ),
        (["--hyperparams", "nowhere.yaml"], "Cannot read nowhere.yaml"),
        (["--example", "nowhere.wav"], "Cannot read the example audio"),
        (["--repo", "me/toy"], "no token"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    if arguments != ["missing"]:
        output = ["--output", str(tmp_path / "hub"), "--no-check"]
        arguments = [str(run), *output, *arguments]
    assert main(["publish", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "hub").exists()


def test_load_test(publication, capsys):
    assert main(["load-test", str(publication.folder.path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["interface"] == "speechbrain.inference.ASR.EncoderASR"
    assert result["quantized_layers"] == len(
        QuantizationPlan.load(publication.folder.path / "plan.json").layers
    )
    (found,) = result["results"].values()
    assert set(found["text"]) <= set(toy.ALPHABET + " ")


def test_load_test_of_an_experiment(experiment, capsys):
    assert main(["load-test", str(experiment)]) == 2
    assert "publish it first" in capsys.readouterr().err
    make_folder(experiment, unchecked(with_example=False))
    assert main(["load-test", str(experiment)]) == 0
    assert "2 s of noise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "hyperparams.yaml").unlink(), "no hyperparams.yaml"),
        (lambda p: (p / "wav2vec2.ckpt").unlink(), "cannot load"),
        (lambda p: (p / "model.ckpt").write_bytes(b"x" * 99), "truncated"),
    ],
)
def test_load_test_of_a_broken_folder(
    publication, tmp_path, capsys, spoil, message
):
    folder = tmp_path / "broken"
    shutil.copytree(publication.folder.path, folder)
    spoil(folder)
    assert main(["load-test", str(folder)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err


# -- the knob of the block ---------------------------------------------------------


def run_toy(experiment, publish, code=""):
    """Run the recipe in a process, which ends by itself or by an error."""
    script = (
        "import sys; from tests.integration import toy; "
        f"toy.main(sys.argv[1:]); {code}"
    )
    yaml = experiment / "train.yaml"
    yaml.write_text(toy.YAML.read_text() + toy.BLOCK)
    command = [sys.executable, "-c", script, str(yaml)]
    command += ["--output_folder", str(experiment), "--device", "cpu"]
    knobs = f"{{publish: {publish}, method: uniform}}"
    env = {k: v for k, v in os.environ.items() if "PYTEST" not in k}
    return subprocess.run(
        [*command, "--ptq", knobs],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_published_when_the_recipe_ends(experiment, trained):
    shutil.rmtree(experiment / "ptq")
    done = run_toy(experiment, "{dry_run: True, repo: me/toy}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("folder: ") == 1  # once, not for each test set
    assert set(FILES) <= {
        path.name for path in (experiment / "ptq" / "hub").iterdir()
    }


@pytest.mark.parametrize("end", ["raise RuntimeError('late')", "sys.exit(1)"])
def test_not_published_when_the_recipe_fails(experiment, end):
    shutil.rmtree(experiment / "ptq")
    done = run_toy(experiment, "{dry_run: True}", end)
    assert done.returncode == 1
    assert "Not published: the recipe failed" in done.stderr
    assert not (experiment / "ptq" / "hub").exists()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("{rep: me/toy}", "Did you mean 'repo'"),
        ("{repo: toy}", "no name of a repository"),
        ("{repo: me/a b}", "no name of a repository"),
        ("{private: True}", "are about a repository"),
        ("{interface: EncoderAST}", "Did you mean 'EncoderASR'"),
        ("{example: nowhere.wav}", "nowhere.wav is not there"),
        ("{private: maybe}", "True or False is needed"),
        ("yes, please", "write its knobs"),
    ],
)
def test_wrong_knobs(tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        toy.load(
            tmp_path,
            f"ptq: {{publish: {knobs}}}"
            if knobs[0] == "{"
            else "ptq: {publish: nonsense}",
        )


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_models_for_runtimes_alone(experiment, capsys, runtime):
    command = ["publish", str(experiment), "--no-check", "--json"]
    assert main([*command, f"--{runtime}"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = Path(result["folder"])
    about = json.loads((folder / runtime / "export.json").read_text())
    for file in about["files"]:
        assert file["num_int8"] == file["num_planned_int8"] > 0
        assert f"{runtime}/{file['file']}" in result["files"]
    assert f"`{runtime}/`" in (folder / "README.md").read_text()
