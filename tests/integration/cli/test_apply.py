"""A plan on a float checkpoint, without the recipe."""

import shlex
import sys

import pytest
from yaml import safe_load as yaml_load

from speechbrain_stablequant import read_header
from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.artifacts.float_model import load_float_model
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import FloatModelError
from tests.integration import toy
from tests.integration.cli.conftest import edited_plan, write_yaml
from tests.integration.conftest import copy_experiment
from tests.integration.folders import results, saved, strict_json


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


def test_command_to_measure_with(
    experiment, stablequant, tmp_path, monkeypatch
):
    """The recipe's own script and YAML, and what it was given then."""
    recipe = tmp_path / "my recipe"
    (recipe / "hparams").mkdir(parents=True)
    for place in (recipe, experiment):
        (place / "train_asr.py").write_text("pass\n")
    yaml = recipe / "hparams" / "small.yaml"
    path = experiment / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(f"# Generated 2026-01-01 from:\n# {yaml}\n{text}")
    yaml.write_text(text)
    with path.open("a") as file:
        file.write("data_folder: /my data\nseed_of_more: 2\n")
    with yaml.open("a") as file:
        file.write("data_folder: !PLACEHOLDER\nseed_of_more: 1\n")
    monkeypatch.chdir(tmp_path)
    plan = edited_plan(experiment, tmp_path).name
    code, out, _ = stablequant("apply", plan, experiment, "--output", "a: b")
    assert code == 0
    start, _, command = out.splitlines()[-1].partition(" && ")
    assert shlex.split(start) == ["cd", str(recipe)]
    words = shlex.split(command)
    assert words[:4] == [
        "python",
        "train_asr.py",
        "hparams/small.yaml",
        "--test_only",
    ]
    given = dict(zip(words[4::2], words[5::2]))
    assert given["--output_folder"] == str(experiment)
    assert given["--data_folder"] == "/my data"
    assert given["--seed_of_more"] == "2"
    knob = {"plan": str(tmp_path / "a: b" / "plan.json")}
    assert yaml_load(given["--ptq"]) == knob


def test_inspect_what_was_applied(experiment, stablequant, tmp_path):
    output = tmp_path / "out"
    plan = experiment / "ptq" / "plan.json"
    stablequant("apply", plan, experiment, "--output", output)
    code, out, _ = stablequant("inspect", output, "--layers", "--json")
    data = strict_json(out)
    assert code == 0
    assert {row["name"] for row in data["layers"]} == set(
        Experiment(experiment).plan.layers
    )
    assert all(row["num_bytes"] > 0 for row in data["layers"])
    assert {file["name"] for file in data["files"]} == {"wav2vec2", "model"}
    assert data["coverage"]["fraction"] == 1.0
    (output / "coverage.json").write_text('{"parameters": [1]}')
    code, _, err = stablequant("inspect", output)
    assert code == 2
    assert "coverage.json" in err


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
        (["--min-key", "wer"], ["'wer'", "Did you mean 'WER'?"]),
        (["--min-key", "WER", "--max-key", "CER"], ["not allowed"]),
        (["--recipe", "nowhere"], ["nowhere", "not a folder"]),
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
    assert "a plan of another model" in err
    assert not output.exists()


def test_plan_with_one_wrong_name(experiment, stablequant, tmp_path):
    layers = dict(Experiment(experiment).plan.layers)
    layers["enc.linear.x"] = layers.pop("enc.linear.w")
    other = QuantizationPlan(layers).save(tmp_path / "other.json")
    output = tmp_path / "out"
    code, _, err = stablequant("apply", other, experiment, "--output", output)
    assert code == 2
    assert "Did you mean 'enc.linear.w'?" in err


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
