"""Two processes under torchrun: one plan, work shared, one writer."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from speechbrain_stablequant import load_quantized
from tests.integration import folders, toy
from tests.integration.conftest import copy_experiment

MIXED = """
    method: mixed_precision
    max_drop: 20
    candidates: [W4A8, W8A8]
    front_points: 2
    search_utterances: 16
"""


def torchrun(trained, folder, knobs=""):
    """Run the toy recipe as a user would: ``torchrun train.py ...``."""
    copy_experiment(trained, folder)
    yaml = folder.parent / "toy_ptq.yaml"
    yaml.write_text(toy.YAML.read_text() + toy.BLOCK + knobs)
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nproc_per_node", "2", "--standalone"),
        *(toy.__file__, str(yaml)),
        *("--output_folder", str(folder), "--distributed_backend", "gloo"),
        *("--device", "cpu", "--noprogressbar", "--find_unused_parameters"),
    ]
    result = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def two_processes(trained, tmp_path_factory):
    return torchrun(trained, tmp_path_factory.mktemp("ddp") / "experiment")


def journal(path) -> set:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(lines[0]) == {"search"}
    return {line["key"] for line in lines[1:] if "float @" not in line["key"]}


def test_plan_is_the_same(block_run, two_processes):
    folder, _, _ = block_run
    mine, theirs = (f / "ptq" / "plan.json" for f in (two_processes, folder))
    assert mine.read_bytes() == theirs.read_bytes()


def test_checkpoints_are_the_same(block_run, two_processes):
    folder, _, _ = block_run
    for path in (folder / "ptq" / "checkpoint").iterdir():
        other = two_processes / "ptq" / "checkpoint" / path.name
        assert other.read_bytes() == path.read_bytes(), path.name


def test_candidates_are_spread(block_run, two_processes):
    folder, _, _ = block_run
    first, second = (
        journal(two_processes / "ptq" / name)
        for name in ("search.jsonl", "search.rank1.jsonl")
    )
    whole = journal(folder / "ptq" / "search.jsonl")
    assert first | second == whole
    assert not first & second
    assert min(len(first), len(second)) > len(whole) / 3


def test_one_process_writes(block_run, float_run, two_processes):
    folder, _, _ = block_run
    plain, _, _ = float_run
    mine = folders.results(two_processes)
    assert mine == folders.results(folder)
    assert folders.saved(two_processes) == folders.saved(plain)
    log = (two_processes / "train_log.txt").read_text()
    assert log.count("ptq: W8A8") == 2
    assert log.count("PTQ W8A8") == 2


def test_report_is_the_same(block_run, two_processes):
    folder, _, _ = block_run
    mine, theirs = folders.report(two_processes), folders.report(folder)
    for part in ("coverage", "clipping", "unreached_layers"):
        assert mine[part] == theirs[part]
    for part in ("sensitivity", "flagged", "percentiles", "joint"):
        assert mine["search"][part] == theirs["search"][part]
    for test, other in zip(mine["tests"], theirs["tests"]):
        assert test["metrics"] == other["metrics"]


def test_mixed_precision_is_the_same(trained, tmp_path):
    alone = copy_experiment(trained, tmp_path / "alone")
    toy.run(toy.load(alone, block=toy.BLOCK + MIXED))
    (tmp_path / "ddp").mkdir()
    both = torchrun(trained, tmp_path / "ddp" / "experiment", MIXED)
    mine, theirs = (f / "ptq" / "plan.json" for f in (both, alone))
    assert mine.read_bytes() == theirs.read_bytes()
    found, wanted = folders.report(both), folders.report(alone)
    for part in ("sensitivity", "front", "chosen", "joint"):
        assert found["search"][part] == wanted["search"][part]
    assert (both / "ptq" / "search.rank1.jsonl").is_file()


def test_hessians_of_all_processes_are_added(trained, tmp_path):
    """Half of the data each: the integers are those of one process.

    Sums of floats depend on their order, so a weight may round differently.
    """
    knobs = """
    method: uniform
    bits: W3A8
    rounding: gptq
"""
    alone = copy_experiment(trained, tmp_path / "alone")
    brain, _ = toy.run(toy.load(alone, block=toy.BLOCK + knobs))
    (tmp_path / "ddp").mkdir()
    both = torchrun(trained, tmp_path / "ddp" / "experiment", knobs)
    found = [
        load_quantized(
            copy.deepcopy(brain.hparams.wav2vec2),
            folder / "ptq" / "checkpoint" / "wav2vec2.ckpt",
        ).state_dict()
        for folder in (alone, both)
    ]
    integers = [key for key in found[0] if key.endswith("weight_values")]
    assert len(integers) > 10
    same = [(found[0][key] == found[1][key]).float() for key in integers]
    assert torch.cat([s.flatten() for s in same]).mean() > 0.98


def test_processes_train_together(trained, float_run, tmp_path):
    """Weight norm is fused, steps are new: gradients go through a new DDP."""
    plain, _, _ = float_run
    knobs = """
    method: quantization_aware
    bits: W4A8
    min_key: WER
    training: {epochs: 3, stages: [6], lr_factor: 0.1}
"""
    folder = torchrun(trained, tmp_path / "experiment", knobs)
    assert folders.saved(folder) == folders.saved(plain)
    (training,) = (folder / "ptq" / "training").iterdir()
    progress = max((training / "save").glob("CKPT*")) / "ptq_progress.ckpt"
    # Each process has half of the batches.
    assert json.loads(progress.read_text()) == {"step": 18, "stage": 1}
    found = folders.report(folder)
    assert found["search"]["training"]["meta"]["ptq_stage"] == 1
    clean = next(t for t in found["tests"] if t["name"] == "test-clean")
    loss = clean["metrics"]["loss"]
    assert loss["quantized"] < 2 * loss["float"]
