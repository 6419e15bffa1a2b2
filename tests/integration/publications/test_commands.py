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


def test_load_test_of_an_experiment(experiment, capsys):
    assert main(["load-test", str(experiment)]) == 2
    assert "publish it first" in capsys.readouterr().err
    folder = make_folder(experiment, unchecked()).folder.path
    assert main(["load-test", str(experiment), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["source"] == str(folder)
    assert result["interface"] == "speechbrain.inference.ASR.EncoderASR"
    assert result["quantized_layers"] == len(
        QuantizationPlan.load(folder / "plan.json").layers
    )
    ((key, found),) = result["results"].items()
    assert key == str(folder / "example.wav")
    assert set(found["text"]) <= set(toy.ALPHABET + " ")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "hyperparams.yaml").unlink(), "no hyperparams.yaml"),
        (lambda p: flip(p / "wav2vec2.ckpt"), "does not match its own hash"),
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


def flip(path: Path) -> None:
    """Change a bit of a file's weights."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def test_models_for_runtimes_alone(experiment, capsys):
    command = ["publish", str(experiment), "--no-check", "--json"]
    assert main([*command, "--onnx", "--openvino"]) == 0
    result = json.loads(capsys.readouterr().out)
    folder = Path(result["folder"])
    for runtime in ("onnx", "openvino"):
        about = json.loads((folder / runtime / "export.json").read_text())
        for file in about["files"]:
            assert file["num_int8"] == file["num_planned_int8"] > 0
            assert f"{runtime}/{file['file']}" in result["files"]
        assert f"`{runtime}/`" in (folder / "README.md").read_text()


# -- the option of the block ---------------------------------------------------------


SCRIPT = """
import sys
from speechbrain_stablequant.publishing.schedule import make_publisher
publisher = make_publisher({"dry_run": True, "no_check": True})
for test_set in range(2):
    publisher.schedule(sys.argv[1])
"""
# Else nothing is published, as in any test
ENVIRONMENT = {k: v for k, v in os.environ.items() if "PYTEST" not in k}


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("", 0, ""),
        ("raise RuntimeError('late')", 1, "Not published: the recipe failed"),
        ("sys.exit(1)", 1, "Not published: the recipe failed"),
    ],
)
def test_published_only_if_the_script_ends_well(experiment, end, code, said):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + end, str(experiment)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    # Once, not for each test set
    assert done.stdout.count("folder: ") == (code == 0)
    assert (experiment / "ptq" / "hub").exists() == (code == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{rep: me/toy}", "Did you mean 'repo'"),
        ("{repo: toy}", "not a valid repository id"),
        ("{repo: me/a b}", "not a valid repository id"),
        ("{private: True}", "are about a repository"),
        ("{interface: EncoderAST}", "Did you mean 'EncoderASR'"),
        ("{example: nowhere.wav}", "nowhere.wav is not there"),
        ("{private: maybe}", "True or False is needed"),
        ("yes, please", "maps options"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        toy.load(
            tmp_path,
            f"ptq: {{publish: {options}}}"
            if options[0] == "{"
            else "ptq: {publish: nonsense}",
        )


def test_published_once_when_a_recipe_of_two_processes_ends(experiment):
    shutil.rmtree(experiment / "ptq")
    yaml = experiment / "train.yaml"
    publish = "{dry_run: True, repo: me/toy}"
    block = f"    publish: {publish}\n    method: uniform\n"
    yaml.write_text(toy.YAML.read_text() + toy.BLOCK + block)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node", "2", "--standalone"),
            *(toy.__file__, str(yaml), "--output_folder", str(experiment)),
            *("--distributed_backend", "gloo", "--device", "cpu"),
            *("--noprogressbar", "--find_unused_parameters"),
        ],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("folder: ") == 1
    assert "EncoderASR loads it" in done.stdout
    assert set(FILES) <= {
        path.name for path in (experiment / "ptq" / "hub").iterdir()
    }
