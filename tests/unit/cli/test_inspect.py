"""What things are: by content, never by unpickling."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from torch import nn

from speechbrain_stablequant.models.multi_domain import MultiDomainLM
from tests.unit.cli.conftest import SAMPLES, make_report
from tests.unit.models.multi_domain.models import transformer


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_of(**values):
    """Return a test set whose one metric has some values."""
    return {"name": "t", "metrics": {"WER": {"float": 1.0, **values}}}


test_of.__test__ = False


def test_plan(stablequant, plan_file):
    result = stablequant("inspect", plan_file)
    assert result.code == 0
    assert result.err == ""
    rows = [line.split() for line in result.out.splitlines()]
    assert ["enc", "int4", "symmetric", "per", "channel", "/"] in [
        row[:6] for row in rows
    ]
    assert any(row[:1] == ["out"] and "float" in row for row in rows)


def test_plan_with_all_layers_as_json(stablequant, plan_file):
    data = stablequant("inspect", plan_file, "--layers", "--json").data
    assert data["kind"] == "plan"
    assert [row["name"] for row in data["layers"]] == ["enc.a", "enc.b", "out"]
    assert [row["bits"] for row in data["layers"]] == [8, 4, 8]
    given = data["layers"][0]["inputs"]["input"]
    assert given["range"] == [-2.0, 2.0]
    assert (given["percentile"], given["clipped"]) == (99.5, 0.01)
    assert sum(group["layers"] for group in data["widths"]) == 3


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.ckpt")))
def test_checkpoints_of_all_kinds(stablequant, path):
    data = stablequant("inspect", path, "--layers", "--json").data
    assert data["kind"] == "checkpoint"
    assert data["files"][0]["num_bytes"] == path.stat().st_size
    stored = sum(row["num_bytes"] for row in data["layers"])
    assert 0 < stored < path.stat().st_size


def test_report(stablequant, report_file):
    result = stablequant("inspect", report_file("a"))
    assert result.code == 0
    assert "10.00" in result.out
    assert "2.00 times as fast" in result.out


def test_float_checkpoint_is_not_unpickled(stablequant, tmp_path):
    trap = tmp_path / "trap"
    for name, save in (
        ("new.ckpt", torch.save),
        ("old.ckpt", lambda obj, path: path.write_bytes(pickle.dumps(obj))),
    ):
        path = tmp_path / name
        save(Bomb(trap), path)
        result = stablequant("inspect", path)
        assert result.code == 0
        assert "not quantized" in result.out
    assert not trap.exists()
    assert zipfile.is_zipfile(tmp_path / "new.ckpt")


def test_float_checkpoint_folder(stablequant, tmp_path):
    (tmp_path / "CKPT.yaml").write_text("WER: 1\n")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "model.ckpt")
    data = stablequant("inspect", tmp_path, "--json").data
    assert data["kind"] == "float checkpoint"
    assert [file["name"] for file in data["files"]] == ["model"]


def test_domain(stablequant, tmp_path):
    lm = MultiDomainLM(transformer())
    lm.add_domain("music")
    path = tmp_path / "music.safetensors"
    lm.save_domain("music", path)
    data = stablequant("inspect", path, "--json").data
    assert data["kind"] == "domain"
    assert data["about"]["domain"] == "music"
    assert data["about"]["quantized"] is False


def test_damaged_checkpoint(stablequant, tmp_path):
    whole = (SAMPLES / "linear_w8.ckpt").read_bytes()
    path = tmp_path / "half.ckpt"
    for size in (40, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:size])
        stablequant("inspect", path).check_mistake(str(path))


def changed_byte(path):
    """Flip a bit of the last tensor of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_changed_byte_of_a_checkpoint(stablequant, tmp_path):
    path = tmp_path / "model.ckpt"
    shutil.copyfile(SAMPLES / "linear_w8.ckpt", path)
    assert stablequant("inspect", path).code == 0
    changed_byte(path)
    stablequant("inspect", path).check_mistake("model.ckpt", "own hash")


def test_changed_byte_in_an_experiment(stablequant, tmp_path, plan):
    folder = tmp_path / "ptq" / "checkpoint"
    folder.mkdir(parents=True)
    path = folder / "model.ckpt"
    shutil.copyfile(SAMPLES / "linear_w8.ckpt", path)
    plan.save(tmp_path / "ptq" / "plan.json")
    report = tmp_path / "ptq" / "report.json"
    report.write_text(json.dumps(make_report()))
    assert stablequant("inspect", tmp_path).code == 0
    changed_byte(path)
    stablequant("inspect", tmp_path).check_mistake("model.ckpt", "own hash")


def test_changed_byte_of_a_domain(stablequant, tmp_path):
    lm = MultiDomainLM(transformer())
    lm.add_domain("music")
    path = tmp_path / "music.safetensors"
    lm.save_domain("music", path)
    changed_byte(path)
    stablequant("inspect", path).check_mistake("own hash")


def test_folder_of_float_checkpoints(stablequant, tmp_path):
    for name in ("CKPT+1", "CKPT+2"):
        folder = tmp_path / "save" / name
        folder.mkdir(parents=True)
        (folder / "CKPT.yaml").write_text("WER: 1\n")
        torch.save(nn.Linear(2, 2).state_dict(), folder / "model.ckpt")
    data = stablequant("inspect", tmp_path / "save", "--json").data
    assert data["kind"] == "float checkpoint"
    names = [file["name"] for file in data["files"]]
    assert names == ["CKPT+1/model", "CKPT+2/model"]


def test_pipe_is_not_waited_for(stablequant, tmp_path):
    path = tmp_path / "endless.json"
    os.mkfifo(path)
    stablequant("inspect", path).check_mistake("neither a file nor a folder")


def test_names_cannot_command_the_terminal(stablequant, plan, tmp_path):
    name = "\x1b[31mred\x1b[0m\x07\nout int8"
    layers = {name: plan.layers["enc.a"]}
    path = type(plan)(layers).save(tmp_path / "plan.json")
    result = stablequant("inspect", path, "--layers")
    assert result.code == 0
    assert r"\x1b[31mred\x1b[0m\x07\nout int8" in result.out
    assert not set("\x1b\x07") & set(result.out)
    layers = json.loads(stablequant("inspect", path, "--layers", "--json").out)
    assert layers["layers"][0]["name"] == name
    missing = stablequant("inspect", tmp_path / "\x1b[31m.json")
    missing.check_mistake(r"\x1b[31m.json")


def test_damaged_checkpoint_is_no_tokenizer(stablequant, tmp_path):
    folder = tmp_path / "ptq" / "checkpoint"
    folder.mkdir(parents=True)
    whole = (SAMPLES / "linear_w8.ckpt").read_bytes()
    (folder / "model.ckpt").write_bytes(whole[: len(whole) // 2])
    stablequant("inspect", tmp_path).check_mistake("model.ckpt")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.json", '{"layers": ', ["broken.json", "JSON"]),
        ("foreign.json", '{"a": 1}', ["neither a plan", "nor a report"]),
        ("list.json", "[1, 2]", ["neither a plan"]),
        ("text.ckpt", "0 => a\n", ["text.ckpt", "not a quantized checkpoint"]),
        ("empty.ckpt", "", ["empty.ckpt"]),
        ("plan.json", '{"layers": {"a": {"weigth": {}}}}', ["weight"]),
    ],
)
def test_wrong_files(stablequant, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_text(content)
    stablequant("inspect", path).check_mistake(*words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"tests": [{"name": "t", "metrics": {"WER": 3}}]},
            ["tests[0].metrics.WER", "3"],
        ),
        ({"tests": [3]}, ["tests[0]", "3"]),
        ({"files": [{"name": "a"}]}, ["files[0]", "'num_bytes'"]),
        ({"coverage": {"parameters": [{}]}}, ["parameters[0]", "'name'"]),
        ({"label": None}, ["label", "None"]),
        ({"coverage": {"parameters": 3}}, ["coverage.parameters", "3"]),
        ({"coverage": {"fraction": "all"}}, ["fraction", "'all'"]),
        ({"tests": [test_of(quantized="6")]}, ["quantized", "'6'"]),
        ({"tests": [{**test_of(), "float_speed": 3}]}, ["float_speed"]),
        (
            {"files": [{"name": "a", "num_bytes": 1, "float_num_bytes": 0}]},
            ["files[0].float_num_bytes", "0"],
        ),
        ({"environment": "here"}, ["environment", "'here'"]),
        ({"unreached_layers": 2}, ["unreached_layers", "2"]),
    ],
)
def test_damaged_reports(stablequant, report_file, changes, words):
    path = report_file("a", **changes)
    stablequant("inspect", path).check_mistake("report.json", *words)


def test_missing_things(stablequant, tmp_path):
    stablequant("inspect", tmp_path / "no").check_mistake("is not there")
    stablequant("inspect", tmp_path).check_mistake("no results", "ptq block")
    stablequant("inspect", "some/where/else").check_mistake("is not there")


def test_hub_name_that_cannot_be_fetched(stablequant, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = stablequant("inspect", "nobody/nothing")
    result.check_mistake("nobody/nothing", "Hub")


def test_folder_without_checkpoints(stablequant, tmp_path, plan):
    plan.save(tmp_path / "ptq" / "plan.json")
    data = stablequant("inspect", tmp_path, "--json").data
    assert (data["kind"], data["files"]) == ("experiment", [])
    (tmp_path / "ptq" / "report.json").write_text(json.dumps(make_report()))
    assert stablequant("inspect", tmp_path / "ptq", "--json").data["report"]


def test_published_folder(stablequant, tmp_path):
    shutil.copy(SAMPLES / "linear_w4.ckpt", tmp_path / "model.ckpt")
    (tmp_path / "hyperparams.yaml").write_text("modules: {}\n")
    data = stablequant("inspect", tmp_path, "--layers", "--json").data
    assert data["kind"] == "published"
    assert all(row["name"].startswith("model.") for row in data["layers"])
