"""Quantization-aware training in loops of many kinds."""

import json

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import KnobError, StableQuantError
from tests.integration.tiny_brain import (
    SIZE,
    Data,
    TinyBrain,
    build,
    evaluate,
    fit,
    values,
)


class WithSchedule(TinyBrain):
    """Raises its rate from zero, as with Noam's schedule."""

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01


class Moves(TinyBrain):
    """Notes the values at the start and the end of training."""

    def init_optimizers(self):
        super().init_optimizers()
        self.hparams.seen = [values(self)]

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        self.hparams.seen.append(values(self))


def moved(brain, key) -> float:
    """Return how far a value went in the last call of ``fit``."""
    first, last = brain.hparams.seen[0], brain.hparams.seen[-1]
    return float((first[key] - last[key]).abs().max())


def test_a_rate_that_begins_with_zero_is_taken_from_the_float_training(
    tmp_path,
):
    class Both(WithSchedule, Moves):
        pass

    brain = build(tmp_path, Both, lr=0.0)
    fit(brain)
    assert moved(brain, "net.0.weight") > 1e-3


def test_a_rate_that_nobody_knows_is_asked_for(tmp_path):
    with pytest.raises(KnobError, match=r"training: \{lr"):
        fit(build(tmp_path / "a", lr=0.0))
    brain = build(tmp_path / "b", Moves, lr=0.0, training={"lr": 0.01})
    fit(brain)
    assert moved(brain, "net.0.weight") > 1e-3


def test_the_key_of_the_block_chooses_what_was_trained(tmp_path):
    brain = build(tmp_path, min_key="up")
    fit(brain)
    evaluate(brain)
    first = brain.hparams.ptq.report.planned.search["training"]
    assert first["meta"]["up"] == 2.0  # stage 1 begins in the second epoch


def test_another_key_is_another_model(tmp_path):
    """Integers, norms and the report belong to the same checkpoint."""

    def losses(brain, *keys):
        return [
            evaluate(brain, min_key=key)["metrics"]["loss"]["quantized"]
            for key in keys
        ]

    brain = build(tmp_path, min_key=None, float_epochs=1)
    fit(brain)
    both = losses(brain, "loss", "up")
    again = build(
        tmp_path, min_key=None, float_epochs=1, run_opts={"test_only": True}
    )
    fit(again)
    assert losses(again, "up", "loss") == both[::-1]
    assert both[0] != both[1]


@pytest.mark.parametrize("old", [False, True])
def test_frozen_weights_stay_also_when_fused(tmp_path, old):
    norm = torch.nn.utils.weight_norm if old else weight_norm
    net = nn.Sequential(norm(nn.Linear(SIZE, 32)), nn.Linear(32, 32))
    net[0].requires_grad_(False)
    brain = build(tmp_path, Moves, net)
    fit(brain)
    assert moved(brain, "net.0.weight") == 0.0
    assert moved(brain, "net.1.weight") > 1e-3


def test_statistics_outside_of_the_modules_stay(tmp_path):
    brain = build(tmp_path, modules=["net"])
    brain.modules["head"] = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 2))
    brain.checkpointer.recoverables["head"] = brain.modules["head"]
    fit(brain)
    (folder,) = (tmp_path / "ptq" / "training").iterdir()
    found = [
        torch.load(path, weights_only=True)
        for path in sorted(folder.glob("save/*/head.ckpt"))
    ]
    seen = {int(state["0.num_batches_tracked"]) for state in found}
    assert len(found) > 0
    # Those of one of the three float epochs, whichever was the best.
    assert len(seen) == 1
    assert seen <= {8, 16, 24}


def test_two_forwards_a_batch_are_one_step(tmp_path):
    class Twice(TinyBrain):
        def fit_batch(self, batch):
            self.compute_forward(batch, sb.Stage.TRAIN)
            return super().fit_batch(batch)

    brain = build(tmp_path, Twice)
    fit(brain)
    (folder,) = (tmp_path / "ptq" / "training").iterdir()
    paths = sorted(folder.glob("save/*/ptq_progress.ckpt"))
    steps = [json.loads(path.read_text())["step"] for path in paths]
    assert max(steps) == 32


def test_several_losses_are_refused(tmp_path):
    class Several(TinyBrain):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            return {"loss": loss} if self.hparams.several else loss

        def on_fit_start(self):
            super().on_fit_start()
            self.hparams.several = self.checkpointer.checkpoints_dir != (
                tmp_path / "save"
            )

    with pytest.raises(StableQuantError, match="returned a dict"):
        fit(build(tmp_path, Several))


def test_a_looped_loader_has_its_nominal_length(tmp_path):
    brain = build(tmp_path)
    loader = torch.utils.data.DataLoader(Data(), batch_size=8)
    fit(brain, LoopedLoader(loader, 5))
    (folder,) = (tmp_path / "ptq" / "training").iterdir()
    paths = sorted(folder.glob("save/*/ptq_progress.ckpt"))
    assert json.loads(paths[-1].read_text())["step"] == 20


def test_a_stream_without_a_length_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Data()[i] for i in range(16)])

    brain = build(tmp_path)
    with pytest.raises(StableQuantError, match="looped_nominal_epoch"):
        fit(brain, Stream())


def test_debug_leaves_no_training_behind(tmp_path):
    options = {"debug": True, "debug_batches": 2, "debug_epochs": 1}
    brain = build(tmp_path, run_opts=options)
    fit(brain)
    evaluate(brain, min_key="loss")
    assert not (tmp_path / "ptq" / "training").exists()
    search = brain.hparams.ptq.report.planned.search["training"]
    assert search["meta"]["ptq_stage"] == 1


def test_nothing_to_learn_from_is_refused(tmp_path):
    weights = {"task_weight": 0, "hidden_weight": 1, "output_weight": 0}
    with pytest.raises(KnobError, match="hidden_layers"):
        fit(build(tmp_path, training=weights))


def test_resumed_in_the_validation_of_an_epoch(tmp_path):
    """The stage is known before the first batch of training."""

    class Dies(TinyBrain):
        def on_stage_start(self, stage, epoch=None):
            trains = self.checkpointer.checkpoints_dir != tmp_path / "a/save"
            if stage == sb.Stage.VALID and trains and epoch == 3:
                raise KeyboardInterrupt

    options = {"ckpt_interval_steps": 8, "ckpt_interval_minutes": 0}
    with pytest.raises(KeyboardInterrupt):
        fit(build(tmp_path / "a", Dies, run_opts=options))
    found = []
    for name in ("a", "b"):
        brain = build(tmp_path / name, run_opts=options)
        fit(brain)
        test = evaluate(brain, min_key="loss")
        found.append(test["metrics"]["loss"]["quantized"])
    assert found[0] == found[1]


def test_there_is_no_training_without_a_recipe():
    model = nn.Linear(4, 4)
    with pytest.raises(KnobError, match="recipe"):
        quantize(
            model, [torch.randn(2, 4)], method="quantization_aware", bits="W2"
        )
    assert type(model) is nn.Linear
