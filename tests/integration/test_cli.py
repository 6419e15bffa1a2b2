"""Commands on what a recipe has left, and on published models."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references

from speechbrain_stablequant import quantize, read_header, save_quantized
from speechbrain_stablequant.cli import main
from speechbrain_stablequant.cli.models import LoadedModel, load_model
from speechbrain_stablequant.cli.timing import agreement
from speechbrain_stablequant.experiment import Experiment, ExperimentError
from speechbrain_stablequant.float_model import (
    FloatModelError,
    load_float_model,
)
from speechbrain_stablequant.plan import QuantizationPlan

from . import publishing, toy
from .conftest import copy_experiment
from .folders import results, saved, strict_json
from .hub.client import environment
from .hub.server import Hub


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


# -- experiments ---------------------------------------------------------------


def test_an_experiment_has_all_parts(experiment):
    for folder in (experiment, experiment / "ptq"):
        found = Experiment(folder)
        assert found.folder == experiment
        assert found.hyperparams.is_file()
        assert found.report["label"] == "W8A8 stablequant"
        assert set(found.checkpoints) == {"wav2vec2", "model"}
        assert list(found.other_files) == ["tokenizer.ckpt"]
        assert len(found.plan.layers) > 20


@pytest.mark.parametrize(
    ("missing", "attribute", "words"),
    [
        ("hyperparams.yaml", "hyperparams", "recipe writes it"),
        ("ptq/report.json", "report", "Run the recipe"),
        ("ptq/plan.json", "plan", "Run the recipe"),
    ],
)
def test_missing_parts_say_what_to_do(experiment, missing, attribute, words):
    (experiment / missing).unlink()
    with pytest.raises(ExperimentError, match=words):
        getattr(Experiment(experiment), attribute)


def test_no_quantized_files(experiment):
    for path in (experiment / "ptq" / "checkpoint").glob("*.ckpt"):
        path.unlink()
    with pytest.raises(ExperimentError, match="no quantized checkpoint"):
        Experiment(experiment).checkpoints  # noqa: B018


def test_inspect_an_experiment(experiment, stablequant):
    code, out, _ = stablequant("inspect", experiment)
    assert code == 0
    for expected in (
        "stablequant",
        "wav2vec2",
        "test-other",
        "weights quantized",
    ):
        assert expected in out
    code, out, err = stablequant("inspect", experiment, "--layers", "--json")
    data = strict_json(out)
    assert {row["name"] for row in data["layers"]} == set(
        Experiment(experiment).plan.layers
    )
    assert all(row["num_bytes"] > 0 for row in data["layers"])
    assert err == ""


def test_compare_with_an_applied_plan(experiment, stablequant, tmp_path):
    applied = tmp_path / "applied"
    plan = edited_plan(experiment, tmp_path)
    stablequant("apply", plan, experiment, "--output", applied)
    code, out, _ = stablequant("compare", experiment, applied, "--json")
    data = strict_json(out)
    assert code == 0
    assert [row["name"] for row in data["layers"]] == ["enc.linear.w"]
    differs = data["layers"][0]["differs"]["weights"]
    assert [text[:4] for text in differs] == ["int8", "int4"]


def test_items_of_a_run_pair_with_themselves(experiment, stablequant):
    code, out, _ = stablequant("compare", experiment, experiment, "--json")
    rows = {(r["test"], r["metric"]): r for r in strict_json(out)["metrics"]}
    change = rows["test-clean", "WER"]["differences"][1]
    assert (change["change"], change["low"], change["high"]) == (0, 0, 0)


def test_report_makes_the_page_again(experiment, stablequant):
    page = experiment / "ptq" / "report.html"
    page.unlink(missing_ok=True)
    code, out, _ = stablequant("report", experiment, "--json")
    assert code == 0
    assert strict_json(out)["page"] == str(page)
    assert "test-clean" in page.read_text(encoding="utf-8")


def test_report_of_damaged_json(experiment, stablequant):
    (experiment / "ptq" / "report.json").write_text('{"label": ')
    code, out, err = stablequant("report", experiment)
    assert (code, out) == (2, "")
    assert "report.json" in err


# -- apply -----------------------------------------------------------------------


def edited_plan(experiment, folder):
    """Write a plan in which one layer has 4 bits."""
    plan = Experiment(experiment).plan
    layers = dict(plan.layers)
    layer = layers["enc.linear.w"]
    scheme = dataclasses.replace(layer.weight, bits=4)
    layers["enc.linear.w"] = dataclasses.replace(layer, weight=scheme)
    return QuantizationPlan(layers).save(folder / "edited.json")


def test_applied_plan_gives_the_recipes_own_bytes(
    experiment, stablequant, tmp_path
):
    before = saved(experiment), results(experiment)
    output = tmp_path / "out"
    code, out, _ = stablequant(
        "apply",
        experiment / "ptq" / "plan.json",
        experiment,
        "--output",
        output,
        "--min-key",
        "WER",
        "--json",
    )
    assert code == 0
    data = strict_json(out)
    assert data["coverage"] == 1.0
    for name, path in Experiment(experiment).checkpoints.items():
        applied = output / "checkpoint" / f"{name}.ckpt"
        assert applied.read_bytes() == path.read_bytes()
        assert str(applied) in [file["path"] for file in data["files"]]
    assert (output / "checkpoint" / "tokenizer.ckpt").is_file()
    assert (saved(experiment), results(experiment)) == before


def test_applied_plan_is_measured_by_the_recipe(
    experiment, stablequant, tmp_path
):
    plan = edited_plan(experiment, tmp_path)
    output = tmp_path / "out"
    code, out, _ = stablequant("apply", plan, experiment, "--output", output)
    assert code == 0
    assert f"--ptq '{{plan: {output / 'plan.json'}}}'" in out
    header = read_header(output / "checkpoint" / "model.ckpt")
    assert {p.weight.bits for p in header["plan"].layers.values()} == {4, 8}
    knobs = f"ptq: {{plan: {output / 'plan.json'}}}"
    toy.run(toy.load(experiment, knobs), tests=("test-clean",))
    ours = (output / "checkpoint" / "model.ckpt").read_bytes()
    theirs = experiment / "ptq" / "checkpoint" / "model.ckpt"
    assert theirs.read_bytes() == ours


def test_apply_without_a_block_in_the_experiment(
    trained, block_run, stablequant, tmp_path
):
    folder = copy_experiment(trained, tmp_path / "float")
    write_yaml(folder, "")
    plan = block_run[0] / "ptq" / "plan.json"
    code, _, _ = stablequant("apply", plan, folder, "--output", tmp_path / "o")
    assert code == 0
    assert set(Experiment(tmp_path / "o").checkpoints) == {"wav2vec2", "model"}


def test_apply_chooses_the_checkpoint(experiment, stablequant, tmp_path):
    names = sorted(p.name for p in (experiment / "save").glob("CKPT+*"))
    assert len(names) == 2
    for name in names:
        given = experiment / "save" / name
        code, out, _ = stablequant(
            "apply",
            experiment / "ptq" / "plan.json",
            experiment,
            "--output",
            tmp_path / name,
            "--checkpoint",
            given,
            "--json",
        )
        assert code == 0
        assert strict_json(out)["checkpoint"].endswith(name)
    first, second = (
        (tmp_path / name / "checkpoint" / "model.ckpt").read_bytes()
        for name in names
    )
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "CKPT+none"], ["no checkpoint 'CKPT+none'"]),
        (["--min-key", "WRE"], ["'WRE'", "'WER'"]),
        (["--min-key", "WER", "--max-key", "CER"], ["not allowed"]),
        (["--recipe", "nowhere"], ["nowhere", "no folder"]),
        (["--min-coverage", "2"], ["min_coverage"]),
    ],
)
def test_wrong_choices(experiment, stablequant, tmp_path, arguments, words):
    plan = experiment / "ptq" / "plan.json"
    output = tmp_path / "out"
    code, out, err = stablequant(
        "apply", plan, experiment, "--output", output, *arguments
    )
    assert (code, out) == (2, "")
    assert all(word in err for word in words)
    assert not output.exists()


def test_plan_of_another_model(experiment, stablequant, tmp_path):
    plan = Experiment(experiment).plan
    layers = {f"x.{n}": layer for n, layer in plan.layers.items()}
    other = QuantizationPlan(layers).save(tmp_path / "other.json")
    output = tmp_path / "out"
    code, _, err = stablequant("apply", other, experiment, "--output", output)
    assert code == 2
    assert "does not have" in err
    assert not output.exists()


def test_plan_that_covers_too_little(experiment, stablequant, tmp_path):
    plan = Experiment(experiment).plan
    layers = {"enc.linear.w": plan.layers["enc.linear.w"]}
    few = QuantizationPlan(layers).save(tmp_path / "few.json")
    arguments = ["apply", few, experiment, "--output", tmp_path / "out"]
    code, _, err = stablequant(*arguments)
    assert code == 2
    assert "weight bytes" in err
    code, out, _ = stablequant(*arguments, "--min-coverage", "0.01", "--json")
    assert code == 0
    assert len(strict_json(out)["not_quantized"]) > 10


def test_existing_output_is_refused(experiment, stablequant, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    plan = experiment / "ptq" / "plan.json"
    code, _, err = stablequant("apply", plan, experiment, "--output", output)
    assert code == 2
    assert "not empty" in err
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("speechbrain.nnet.linear.Linear", "not_there.Linear"),
            "--recipe DIR",
        ),
        (
            ("!new:speechbrain.utils.checkpoints.Checkpointer", "!new:x.Y"),
            "no Checkpointer",
        ),
    ],
)
def test_yaml_that_cannot_be_made(experiment, change, words):
    path = experiment / "hyperparams.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(FloatModelError, match=words):
        load_float_model(experiment)


def test_weights_that_no_checkpoint_holds(experiment):
    path = experiment / "hyperparams.yaml"
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "recoverables:" in line)
    row = next(
        i for i in range(start, len(lines)) if lines[i].strip()[:6] == "model:"
    )
    del lines[row]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FloatModelError, match="'enc' has weights"):
        load_float_model(experiment)


def test_class_of_the_recipe(experiment, tmp_path):
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "own_layers.py").write_text(
        "from speechbrain.nnet.linear import Linear\n"
        "class OwnLinear(Linear):\n    pass\n"
    )
    path = experiment / "hyperparams.yaml"
    changed = path.read_text().replace(
        "!new:speechbrain.nnet.linear.Linear", "!new:own_layers.OwnLinear"
    )
    path.write_text(changed)
    before = list(sys.path)
    model = load_float_model(experiment, recipe)
    assert sys.path == before
    assert any(type(m).__name__ == "OwnLinear" for m in model.root.modules())


# -- export and bench --------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_recognizer_runs_alone(
    published, stablequant, tmp_path, runtime
):
    output = tmp_path / "exported"
    code, out, _ = stablequant(
        "export", published, "--to", runtime, "--output", output, "--json"
    )
    data = strict_json(out)
    assert code == 0
    assert json.loads((output / "export.json").read_text())["ok"] is True
    assert data["sample_rate"] == 16000
    assert sum(file["num_int8"] for file in data["files"]) == sum(
        file["num_planned_int8"] for file in data["files"]
    )
    for file in data["files"]:
        assert (output / file["file"]).is_file()
        assert len(file["checks"]) == 2
        shapes = [tuple(c["shapes"].values()) for c in file["checks"]]
        assert shapes[0] != shapes[1]
        assert all(c["snr"] is None or c["snr"] > 20 for c in file["checks"])


def test_exported_code_runs(published, stablequant, tmp_path):
    output = tmp_path / "exported"
    code, out, _ = stablequant(
        "export", published, "--to", "onnx", "--output", output
    )
    assert code == 0
    lines = out.partition("to run it:\n")[2].splitlines()
    assert len(lines) == 5
    source = "\n".join(line.strip() for line in lines)
    arrays = "np.zeros((1, 16000), 'f4')", "np.ones(1, 'f4')"
    for array in arrays:
        source = source.replace("...", array, 1)
    done = subprocess.run(
        [sys.executable, "-c", f"import numpy as np\n{source}"],
        cwd=output,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[(1, ")


def test_exported_speaker_model(speaker, stablequant, tmp_path):
    code, out, _ = stablequant(
        "export",
        speaker[0],
        "--to",
        "onnx",
        "--output",
        tmp_path / "o",
        "--json",
    )
    files = strict_json(out)["files"]
    assert code == 0
    assert [file["module"] for file in files] == ["embedding_model"]
    assert files[0]["inputs"][0]["example_shape"][-1] == 24


def test_failed_check_of_an_export(
    published, stablequant, tmp_path, monkeypatch
):
    from speechbrain_stablequant.cli import exporting

    monkeypatch.setattr(exporting, "LOWEST_SNR", 500.0)
    arguments = [
        "export",
        published,
        "--to",
        "onnx",
        "--output",
        tmp_path / "o",
    ]
    code, out, _ = stablequant(*arguments)
    assert code == 1
    assert "CHECK FAILED" in out


def test_export_does_not_overwrite(published, stablequant, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    arguments = ["export", published, "--to", "openvino", "--output", output]
    code, _, err = stablequant(*arguments)
    assert code == 2
    assert "not empty" in err
    code, _, _ = stablequant(*arguments, "--overwrite")
    assert code == 0
    assert (output / "mine.txt").read_text() == "mine"
    assert (output / "export.json").is_file()


def test_bench(published, audio, stablequant):
    threads = torch.get_num_threads()
    code, out, err = stablequant(
        "bench",
        published,
        *audio,
        "--reference",
        "--rounds",
        "2",
        "--batch-size",
        "2",
        "--threads",
        "1",
        "--json",
    )
    data = strict_json(out)
    assert code == 0
    assert "round 2 of 2" in err
    assert torch.get_num_threads() == threads
    rows = {row["name"]: row for row in data["candidates"]}
    assert set(rows) == {"PyTorch float32", "reference", "openvino", "onnx"}
    for row in rows.values():
        assert len(row["seconds"]) == 2
        assert row["agreement"]["utterances"] == 3
        assert row["real_time_factor"] == pytest.approx(
            row["median_seconds"] / data["audio_seconds"]
        )
    assert rows["PyTorch float32"]["times_as_fast"] == 1
    for name in ("openvino", "onnx"):
        same = rows[name]["agreement_with_reference"]["same_transcripts"]
        assert same >= 2  # a value between two levels may go either way
    found = rows["openvino"]["runtime"]
    assert found["num_int8"] == found["num_planned"] > 20
    lengths = [file["seconds"] for file in data["files"]]
    assert lengths[2] == pytest.approx(
        len(toy.sound("fed be ad", 9, 0.05)) / 16000, rel=0.01
    )


def test_bench_of_a_speaker_model(speaker, audio, stablequant):
    code, out, _ = stablequant(
        "bench", speaker[0], *audio, "--runtime", "openvino", "--rounds", "1"
    )
    assert code == 0
    assert "cosine" in out
    assert "layers executed in int8" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no audio at all", "cannot be read as audio"), (None, "is not there")],
)
def test_bench_of_bad_audio(published, stablequant, tmp_path, content, words):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    code, out, err = stablequant("bench", published, path)
    assert (code, out) == (2, "")
    assert "bad.wav" in err
    assert words in err


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_bench_of_wrong_numbers(published, stablequant, audio, count):
    code, _, err = stablequant(
        "bench", published, audio[0], f"--rounds={count}"
    )
    assert code == 2
    assert "--rounds" in err


def test_unpublished_experiment(experiment, audio, stablequant, tmp_path):
    for arguments in (
        ["bench", experiment, audio[0]],
        ["export", experiment, "--to", "onnx", "--output", tmp_path / "o"],
    ):
        code, out, err = stablequant(*arguments)
        assert (code, out) == (2, "")
        assert "stablequant publish" in err


def test_experiment_published_into_its_folder(experiment):
    hub = publishing.publish_asr(experiment, experiment / "ptq" / "hub")
    model = load_model(str(experiment))
    assert isinstance(model, LoadedModel)
    assert (model.place, model.name) == (str(hub), "EncoderASR")


def test_published_folder_that_cannot_be_loaded(published, stablequant, audio):
    path = published / "hyperparams.yaml"
    changed = path.read_text().replace("!new:speechbrain.nnet", "!new:no.where")
    path.write_text(changed)
    code, _, err = stablequant("bench", published, audio[0])
    assert code == 2
    assert "cannot be loaded with EncoderASR" in err


def test_agreement_of_embeddings():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    found = agreement([a, a], [a, b])
    assert found["lowest_cosine"] == pytest.approx(0.5**0.5)
    assert found["utterances"] == 2


class Letters:
    """A tokenizer with as much as an interface asks for."""

    def encode_as_ids(self, text):
        return [ord(letter) % 20 + 3 for letter in text]


LM_YAML = """
lm: !new:speechbrain.lobes.models.transformer.TransformerLM.TransformerLM
    vocab: 24
    d_model: 16
    nhead: 2
    num_encoder_layers: 2
    num_decoder_layers: 0
    d_ffn: 32
    activation: !name:torch.nn.GELU
    normalize_before: True
modules:
    lm: !ref <lm>
tokenizer: !new:tests.integration.test_cli.Letters
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lm: !ref <lm>
    custom_hooks:
        lm: !name:speechbrain_stablequant.load_quantized
"""


def publish_lm(folder):
    lm = load_hyperpyyaml(LM_YAML)["lm"].eval()
    data = [torch.randint(1, 24, (2, 9))]
    plan = quantize(lm, data, bits="W8A8", progress=False).plan
    folder.mkdir()
    save_quantized(lm, folder / "lm.ckpt", plan)
    (folder / "hyperparams.yaml").write_text(LM_YAML)
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_exported_language_model(stablequant, tmp_path, runtime):
    folder = publish_lm(tmp_path / "lm")
    code, out, _ = stablequant(
        "export", folder, "--to", runtime, "--output", tmp_path / "o", "--json"
    )
    assert code == 0
    file = strict_json(out)["files"][0]
    assert file["module"] == "lm"
    assert file["inputs"][0]["dtype"] == "int64"
    assert file["num_int8"] == file["num_planned_int8"] > 5


def test_language_models_have_no_audio(stablequant, tmp_path, audio):
    folder = publish_lm(tmp_path / "lm")
    code, _, err = stablequant("bench", folder, audio[0])
    assert code == 2
    assert "takes no audio" in err


# -- from a hub --------------------------------------------------------------------


def execute(hub, home, *arguments):
    """Run the command in a process that knows of a hub."""
    return subprocess.run(
        [sys.executable, "-m", "speechbrain_stablequant", *map(str, arguments)],
        env=environment(hub.url, home),
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_models_on_a_hub(published, audio, tmp_path):
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    files["large.bin"] = b"0" * 1000
    home = tmp_path / "home"
    home.mkdir()
    with Hub() as hub:
        hub.add("ann/asr", files)
        done = execute(hub, home, "inspect", "ann/asr", "--json")
        assert done.returncode == 0, done.stderr
        data = strict_json(done.stdout)
        assert data["kind"] == "published"
        assert {file["name"] for file in data["files"]} == {"wav2vec2", "model"}
        assert not list(home.rglob("large.bin"))
        bench = ["bench", "ann/asr", audio[0], "--rounds", "1"]
        done = execute(hub, home, *bench, "--runtime", "openvino", "--json")
        assert done.returncode == 0, done.stderr
        assert strict_json(done.stdout)["interface"] == "EncoderASR"
        for command in (
            ["inspect", "ann/none"],
            ["export", "ann/none", "--to", "onnx", "--output", "o"],
        ):
            done = execute(hub, home, *command)
            assert (done.returncode, done.stdout) == (2, "")
            assert "ann/none" in done.stderr
            assert "Traceback" not in done.stderr
