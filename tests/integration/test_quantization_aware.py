"""``method: quantization_aware`` in a recipe's own loop."""

import json

import pytest
import torch

from speechbrain_stablequant import load_quantized
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import CheckpointError
from tests.integration import folders, toy
from tests.integration.conftest import copy_experiment

BLOCK = """
ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
    checkpointer: !ref <checkpointer>
    method: quantization_aware
    bits: W2A8
    weight_levels: odd
    min_key: WER
    training: {epochs: 8, lr_factor: 0.3}
"""
# The same in little time, where only what is kept and resumed matters.
SHORT = BLOCK.replace("epochs: 8", "epochs: 2")
NEAREST = """
ptq: !new:speechbrain_stablequant.PostTrainingQuantizer
    checkpointer: !ref <checkpointer>
    method: uniform
    bits: W2A8
    weight_levels: odd
"""


class StopsInTraining(toy.ToyASR):
    """Presses Ctrl-C in the second epoch with quantized layers."""

    def on_stage_start(self, stage, epoch=None):
        names = {type(m).__name__ for m in self.modules.modules()}
        trains = any(name.startswith("Trainable") for name in names)
        if stage == toy.sb.Stage.TRAIN and trains and epoch == 2:
            raise KeyboardInterrupt
        super().on_stage_start(stage, epoch)


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """Quantize the same experiment in two ways: folders and Brains by name."""
    found = {}
    for name, block in (("trained", BLOCK), ("nearest", NEAREST)):
        folder = tmp_path_factory.mktemp("qat") / name
        copy_experiment(trained, folder)
        found[name] = (folder, toy.run(toy.load(folder, block=block))[0])
    return found


def errors(folder) -> float:
    """Return the quantized WER; the other test set is too hard for all."""
    tests = folders.report(folder)["tests"]
    clean = next(test for test in tests if test["name"] == "test-clean")
    return clean["metrics"]["WER"]["quantized"]


def integers(folder) -> bytes:
    return (folder / "ptq" / "checkpoint" / "wav2vec2.ckpt").read_bytes()


def test_training_is_better_than_rounding(runs):
    assert errors(runs["trained"][0]) < 0.8 * errors(runs["nearest"][0])
    plan = QuantizationPlan.load(runs["trained"][0] / "ptq" / "plan.json")
    assert plan.method == "quantization_aware"
    widths = {layer.weight.bits for layer in plan.layers.values()}
    assert widths == {2, 8}
    assert {layer.rounding for layer in plan.layers.values()} == {"trained"}
    first, last = "wav2vec2.model.feature_extractor.conv_layers.0.conv", "ctc"
    wide = sorted(n for n, p in plan.layers.items() if p.weight.bits == 8)
    assert len(wide) == 2
    assert wide[1] == first
    assert wide[0].startswith(last)


def test_the_float_experiment_stays_as_it_is(runs, float_run):
    plain, _, _ = float_run
    folder, brain = runs["trained"]
    assert folders.saved(folder) == folders.saved(plain)
    for path, data in folders.results(plain).items():
        assert folders.results(folder)[path] == data, path
    for test in folders.report(folder)["tests"]:
        reference = folders.report(runs["nearest"][0])["tests"]
        same = next(t for t in reference if t["name"] == test["name"])
        for name, row in test["metrics"].items():
            assert row["float"] == same["metrics"][name]["float"]
    assert not any("log_step" in n for n, _ in brain.modules.named_parameters())
    assert brain.checkpointer.checkpoints_dir == folder / "save"
    assert "compute_forward" not in vars(brain)


def test_the_checkpoint_is_packed_and_says_what_was_trained(runs):
    folder, brain = runs["trained"]
    nearest = runs["nearest"][0]
    assert len(integers(folder)) < 1.1 * len(integers(nearest))
    search = folders.report(folder)["search"]["training"]
    assert search["meta"]["ptq_stage"] == 1
    model = brain.hparams.wav2vec2
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = folder / "ptq" / "checkpoint" / "wav2vec2.ckpt"
    load_quantized(model, path)
    # Norms and biases were trained, too, and come with the integers.
    state = model.state_dict()
    norms = [k for k in before if "layer_norm.weight" in k and k in state]
    assert norms
    assert any(not torch.equal(state[k], before[k]) for k in norms)


@pytest.fixture(scope="module")
def short(trained, tmp_path_factory):
    """Train for two epochs: the experiment folder."""
    folder = tmp_path_factory.mktemp("qat") / "short"
    copy_experiment(trained, folder)
    toy.run(toy.load(folder, block=SHORT), tests=())
    return folder


def progress(training) -> dict:
    """Return how far a training has come, by its last checkpoint."""
    last = max((training / "save").glob("CKPT*"))
    return json.loads((last / "ptq_progress.ckpt").read_text())


def test_an_interrupted_training_is_resumed(short, experiment):
    (whole,) = (short / "ptq" / "training").iterdir()
    with pytest.raises(KeyboardInterrupt):
        toy.run(toy.load(experiment, block=SHORT), StopsInTraining)
    (training,) = (experiment / "ptq" / "training").iterdir()
    stopped = progress(training)
    assert 0 < stopped["step"] < progress(whole)["step"]
    toy.run(toy.load(experiment, block=SHORT), tests=())
    assert [p.name for p in training.parent.iterdir()] == [training.name]
    assert progress(training) == progress(whole)


def test_test_only_loads_what_was_trained(runs, tmp_path):
    folder = copy_experiment(runs["trained"][0], tmp_path / "again")
    before = folders.report(folder)["tests"]
    toy.run(toy.load(folder, block=BLOCK), run_opts={"test_only": True})
    assert [t["metrics"] for t in folders.report(folder)["tests"]] == [
        t["metrics"] for t in before
    ]
    assert integers(folder) == integers(runs["trained"][0])


def test_without_a_training_test_only_says_so(experiment):
    with pytest.raises(CheckpointError, match="without --test_only"):
        toy.run(toy.load(experiment, block=BLOCK), run_opts={"test_only": True})


def test_other_float_weights_begin_another_training(short, tmp_path):
    folder = copy_experiment(short, tmp_path / "more")
    (first,) = (folder / "ptq" / "training").iterdir()
    other = "ptq: {min_key: null, max_key: WER}"
    toy.run(toy.load(folder, other, SHORT), tests=())
    names = {path.name for path in first.parent.iterdir()}
    assert len(names) == 2
    assert first.name in names
    assert len({name.split("-")[0] for name in names}) == 1
    toy.run(toy.load(folder, block=SHORT), tests=())
    assert {path.name for path in first.parent.iterdir()} == names
