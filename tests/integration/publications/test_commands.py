"""Publishing and loading from the command line, and from the block."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechbrain_stablequant import (
    QuantizationPlan,
)
from speechbrain_stablequant.cli import main
from speechbrain_stablequant.publishing import (
    make_folder,
)
from tests.integration import toy
from tests.integration.publications.experiments import FILES, unchecked

ROOT = Path(__file__).resolve().parents[3]


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
            "are about a repository",
        ),
        (["--hyperparams", "nowhere.yaml"], "nowhere.yaml is not there"),
        (["--example", "nowhere.wav"], "nowhere.wav is not there"),
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
    make_folder(experiment, unchecked(no_example=True))
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


# -- the option of the block ---------------------------------------------------------


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
        ("{repo: toy}", "not a valid repository id"),
        ("{repo: me/a b}", "not a valid repository id"),
        ("{private: True}", "are about a repository"),
        ("{interface: EncoderAST}", "Did you mean 'EncoderASR'"),
        ("{example: nowhere.wav}", "nowhere.wav is not there"),
        ("{private: maybe}", "True or False is needed"),
        ("yes, please", "write its options"),
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


def test_published_once_by_several_processes(experiment):
    shutil.rmtree(experiment / "ptq")
    yaml = experiment / "train.yaml"
    block = "    publish: {dry_run: True}\n    method: uniform\n"
    yaml.write_text(toy.YAML.read_text() + toy.BLOCK + block)
    env = {k: v for k, v in os.environ.items() if "PYTEST" not in k}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node", "2", "--standalone"),
            *(toy.__file__, str(yaml), "--output_folder", str(experiment)),
            *("--distributed_backend", "gloo", "--device", "cpu"),
            *("--noprogressbar", "--find_unused_parameters"),
        ],
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("folder: ") == 1
    assert "EncoderASR loads it" in done.stdout
    assert (experiment / "ptq" / "hub" / "hyperparams.yaml").is_file()
