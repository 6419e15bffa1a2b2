"""The block in a recipe: what a user writes, and what they get."""

import json

import pytest
import torch
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_stablequant import (
    PostTrainingQuantizationMixin,
    PostTrainingQuantizer,
    QuantizationPlan,
    StableQuantError,
    read_header,
)
from speechbrain_stablequant.errors import CalibrationError, KnobError
from tests.integration import folders, toy

MIXIN_BLOCK = """
ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
"""
UNIFORM = "ptq: {method: uniform}\n"


class MixedASR(PostTrainingQuantizationMixin, toy.ToyASR):
    """The other way to add the plugin: one line in ``train.py``."""


def numbers(folder) -> dict:
    """Return what a report says, without paths and times."""
    found = folders.report(folder)
    for file in found["files"]:
        file["path"] = file["path"].rpartition("/")[2]
    for test in found["tests"]:
        for measured in ("pass_seconds", "speed"):
            test.pop(f"float_{measured}")
            test.pop(f"quantized_{measured}")
    cost = found["search"].get("cost", {})
    cost.pop("computed_passes", None)  # weighted with measured times
    return found


def plan(folder) -> str:
    return (folder / "ptq" / "plan.json").read_text()


def test_training_is_not_trivial(float_run):
    folder, _, _ = float_run
    log = (folder / "train_log.txt").read_text()
    rates = [float(line.rpartition(" ")[2]) for line in log.splitlines()]
    assert rates[-2] < 80  # test-clean; 100 is what silence scores


def test_block_leaves_the_float_run_alone(float_run, block_run):
    plain, _, plain_losses = float_run
    folder, _, losses = block_run
    assert losses == plain_losses
    assert folders.saved(folder) == folders.saved(plain)
    mine, theirs = folders.results(folder), folders.results(plain)
    assert {k: mine.get(k) for k in theirs} == theirs
    extra = {name.removesuffix("_ptq.txt") for name in set(mine) - set(theirs)}
    assert extra == {"wer_test-clean", "wer_test-other"}
    for name in extra:
        assert mine[f"{name}_ptq.txt"].startswith(b"%WER")


def test_block_quantizes_everything_and_reports(block_run):
    folder, brain, losses = block_run
    found = folders.report(folder)
    assert [t["name"] for t in found["tests"]] == list(toy.TEST_SETS)
    assert found["coverage"]["fraction"] == 1.0
    for test, loss in zip(found["tests"], losses):
        rows = test["metrics"]
        assert set(rows) == {"loss", "WER", "CER"}
        assert rows["loss"]["float"] == loss
        assert rows["loss"]["quantized"] != loss
        assert rows["WER"]["items"] in (12, 16)
        change = rows["WER"]["quantized"] - rows["WER"]["float"]
        assert rows["WER"]["change"] == pytest.approx(change)
        assert rows["WER"]["low"] <= change <= rows["WER"]["high"]
    assert found["search"]["joint"]["metric"] == "WER"
    assert (
        brain.hparams.ptq.report.table()
        in (folder / "train_log.txt").read_text()
    )


def test_report_agrees_with_the_recipe(block_run):
    """The WER of the report is the one in the recipe's own files."""
    folder, _, _ = block_run
    for test in folders.report(folder)["tests"]:
        for key, suffix in (("float", ""), ("quantized", "_ptq")):
            path = folder / f"wer_{test['name']}{suffix}.txt"
            first = path.read_text().split()[1]
            assert float(first) == round(test["metrics"]["WER"][key], 2)


def test_plan_is_made_once(block_run):
    folder, _, _ = block_run
    lines = (folder / "ptq" / "search.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines[1:]]
    candidates = [key for key in keys if not key.startswith("float")]
    assert len(candidates) == len(set(candidates)) > 20
    assert folders.report(folder)["search"]["cost"]["resumed"] == 0


def test_log_lines_are_marked(block_run):
    folder, _, _ = block_run
    lines = (folder / "train_log.txt").read_text().splitlines()
    tests = [line for line in lines if "test loss" in line]
    marked = [line for line in tests if line.startswith("ptq: W8A8 stable")]
    assert (len(tests), len(marked)) == (4, 2)


def test_sizes_are_those_on_disk(block_run):
    folder, _, _ = block_run
    found = folders.report(folder)
    assert {f["name"] for f in found["files"]} == {"wav2vec2", "model"}
    for file in found["files"]:
        path = folder / "ptq" / "checkpoint" / f"{file['name']}.ckpt"
        assert path.stat().st_size == file["num_bytes"]
        sizes = {p.stat().st_size for p in folder.glob(f"save/*/{path.name}")}
        assert file["float_num_bytes"] in sizes
    others = {p.name for p in (folder / "ptq" / "checkpoint").iterdir()}
    assert others == {"wav2vec2.ckpt", "model.ckpt", "tokenizer.ckpt"}


def test_coverage_has_every_parameter(block_run):
    folder, brain, _ = block_run
    rows = folders.report(folder)["coverage"]["parameters"]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))
    # Weight norm is fused: one weight stands for the two that make it up.
    made_of = "parametrizations.weight.original"
    expected = {
        name.replace(f"{made_of}0", "weight").replace(f"{made_of}1", "weight")
        for name, _ in brain.modules.named_parameters()
    }
    assert set(names) == expected
    total = sum(row["num_bytes"] for row in rows)
    floats = sum(p.numel() * 4 for p in brain.modules.parameters())
    assert 0.98 * floats < total <= floats


def test_mixin_route_is_the_same(block_run, experiment):
    folder, _, losses = block_run
    hparams = toy.load(experiment, block=MIXIN_BLOCK)
    _, mixed = toy.run(hparams, MixedASR)
    assert mixed == losses
    assert plan(experiment) == plan(folder)
    assert numbers(experiment) == numbers(folder)
    assert folders.results(experiment) == folders.results(folder)
    for path in (folder / "ptq" / "checkpoint").iterdir():
        other = experiment / "ptq" / "checkpoint" / path.name
        assert other.read_bytes() == path.read_bytes()


def test_mixin_without_a_block_changes_nothing(float_run, experiment):
    plain, _, plain_losses = float_run
    _, losses = toy.run(toy.load(experiment, block=""), MixedASR)
    assert losses == plain_losses
    assert folders.results(experiment) == folders.results(plain)
    assert not (experiment / "ptq").exists()


def test_test_only(block_run, experiment):
    """With --test_only ``fit`` returns at once, yet hands over its data."""
    folder, _, _ = block_run
    toy.run(toy.load(experiment), run_opts={"test_only": True})
    assert plan(experiment) == plan(folder)
    assert numbers(experiment)["tests"] == numbers(folder)["tests"]


def test_without_the_float_pass(block_run, experiment):
    folder, _, _ = block_run
    hparams = toy.load(experiment, "ptq: {evaluate_float: False}")
    _, losses = toy.run(hparams)
    assert plan(experiment) == plan(folder)
    mine, reference = folders.report(experiment), folders.report(folder)
    for test, other, loss in zip(mine["tests"], reference["tests"], losses):
        rows = test["metrics"]
        assert rows["loss"] == {"float": None, "quantized": loss}
        assert rows["WER"]["float"] is None
        quantized = other["metrics"]["WER"]["quantized"]
        assert rows["WER"]["quantized"] == quantized
    assert set(folders.results(experiment)) == {
        "wer_test-clean_ptq.txt",
        "wer_test-other_ptq.txt",
    }


def test_plan_is_applied_again(block_run, experiment):
    """``plan: path`` gives the same integers, with no search."""
    folder, _, _ = block_run
    path = folder / "ptq" / "plan.json"
    hparams = toy.load(experiment, f"ptq: {{plan: {path}}}")
    toy.run(hparams, run_opts={"test_only": True})
    assert not list((experiment / "ptq").glob("search*"))
    assert numbers(experiment)["tests"] == numbers(folder)["tests"]
    for name in ("wav2vec2", "model"):
        before, after = (
            (f / "ptq" / "checkpoint" / f"{name}.ckpt").read_bytes()
            for f in (folder, experiment)
        )
        assert before == after


def test_weights_only(experiment):
    toy.run(toy.load(experiment, "ptq: {bits: W4, method: uniform}"))
    layers = QuantizationPlan.load(experiment / "ptq" / "plan.json").layers
    assert all(not layer.inputs for layer in layers.values())
    assert {layer.weight.bits for layer in layers.values()} == {4}
    found = folders.report(experiment)
    assert found["clipping"] == []
    assert found["search"] == {}
    header = read_header(experiment / "ptq" / "checkpoint" / "model.ckpt")
    assert set(header["plan"].layers) == {"0.linear.w", "1.w"}


def test_weights_only_needs_no_data(experiment):
    """Nothing is to be observed or scored: ``evaluate`` alone is enough."""
    hparams = toy.load(experiment, "ptq: {bits: W8, method: uniform}")
    data, brain = toy.datasets(hparams), toy.build(hparams)
    toy.evaluate(brain, hparams, data, "test-clean")
    assert folders.report(experiment)["coverage"]["fraction"] == 1.0


def test_without_validation_data_it_says_so(experiment):
    hparams = toy.load(experiment)
    data, brain = toy.datasets(hparams), toy.build(hparams)
    with pytest.raises(CalibrationError, match="valid_set"):
        toy.evaluate(brain, hparams, data, "test-clean")


@pytest.mark.parametrize(
    ("objective", "metric"),
    [("auto", "WER"), ("loss", "loss"), ("CER", "CER"), ("cer_metric", "CER")],
)
def test_objective(experiment, objective, metric):
    overrides = f"ptq: {{objective: {objective}, search_utterances: 6}}"
    toy.run(toy.load(experiment, overrides), tests=("test-clean",))
    assert folders.report(experiment)["search"]["joint"]["metric"] == metric


class WithScore(toy.ToyASR):
    """Also fills a metric of which nobody says what is good."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.pesq_metric = MetricStats(metric=lambda scores: scores)

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        self.pesq_metric.append(batch.id, torch.full((len(batch.id),), 3.0))
        return loss


def test_objective_whose_good_end_is_not_known(experiment):
    hparams = toy.load(experiment, "ptq: {objective: pesq}")
    with pytest.raises(KnobError, match="lower values are the better ones"):
        toy.run(hparams, WithScore, tests=("test-clean",))


def test_unknown_objective_names_the_nearest(experiment):
    hparams = toy.load(experiment, "ptq: {objective: were}")
    with pytest.raises(KnobError, match="Did you mean 'WER'"):
        toy.run(hparams)


# -- the command line ----------------------------------------------------------


def test_overrides_merge_into_the_block(tmp_path):
    hparams = toy.load(tmp_path, "ptq: {bits: W4A8, keep: ['*conv*']}")
    assert isinstance(hparams["ptq"], PostTrainingQuantizer)
    assert hparams["ptq"].label == "W4A8 stablequant"
    assert list(hparams["ptq"].settings.keep) == ["*conv*"]


def test_null_disables_the_block(float_run, experiment):
    plain, _, plain_losses = float_run
    hparams = toy.load(experiment, "ptq: null")
    assert hparams["ptq"] is None
    _, losses = toy.run(hparams)
    assert losses == plain_losses
    assert folders.results(experiment) == folders.results(plain)


@pytest.mark.parametrize(
    ("knob", "near"),
    [
        ("bit: W4A8", "bits"),
        ("evaluate_flaot: False", "evaluate_float"),
        ("method: stablequants", "stablequant"),
        ("when: evaluation", "evaluate"),
    ],
)
def test_wrong_knob_names_the_nearest(tmp_path, knob, near):
    with pytest.raises(StableQuantError, match=f"Did you mean '{near}'"):
        toy.load(tmp_path, f"ptq: {{{knob}}}")


def test_modules_by_name(experiment):
    overrides = "ptq: {modules: [enc, ctc_lin], method: uniform}"
    toy.run(toy.load(experiment, overrides), tests=("test-clean",))
    layers = QuantizationPlan.load(experiment / "ptq" / "plan.json").layers
    assert set(layers) == {"enc.linear.w", "ctc_lin.w"}
    files = folders.report(experiment)["files"]
    assert [file["name"] for file in files] == ["model"]


def test_unknown_module_names_the_nearest(experiment):
    hparams = toy.load(experiment, "ptq: {modules: [ctc_line]}")
    with pytest.raises(KnobError, match="Did you mean 'ctc_lin'"):
        toy.run(hparams)
