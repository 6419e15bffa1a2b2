"""Quantization-aware training in a recipe's own loop.

The recipe's ``fit`` runs again for a few epochs, with its data, augmentation,
objectives and hooks. What differs: the layers are in training, the rates are
ours, a distillation loss is added, and checkpoints go to a folder of their own.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.settings import Settings
from speechbrain_stablequant.training.checkpoints import (
    TrainingCheckpointer,
    TrainingProgress,
)
from speechbrain_stablequant.training.distillation import (
    Teacher,
    same_random_numbers,
)
from speechbrain_stablequant.training.layers import (
    make_trainable,
    set_weight_scheme,
    trainable_layers,
    trained_inputs,
    trained_weights,
)
from speechbrain_stablequant.training.rates import Rates

__all__ = ["TrainingLoop", "trainable_plan"]

logger = get_logger(__name__)


def trainable_plan(plan: QuantizationPlan) -> dict[str, LayerPlan]:
    """Return the part of a plan that is trained: weights that are integers."""
    return {n: p for n, p in plan.layers.items() if not p.weight.is_float}


class TrainingLoop:
    """Trains the layers of a plan in the loop of a Brain.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain, with the float weights to start from.
    conversion : Conversion
        Its modules, in float.
    plan : QuantizationPlan
        Widths, and ranges of inputs to start from.
    settings : Settings
        The knobs.
    folder : Path
        Where the checkpoints of the training go.
    """

    def __init__(
        self,
        brain: sb.Brain,
        conversion: Conversion,
        plan: QuantizationPlan,
        settings: Settings,
        folder: Path,
    ):
        self.brain, self.conversion = brain, conversion
        self.plan, self.settings = plan, settings
        self.knobs = settings.training_settings
        self.layers = trainable_plan(plan)
        widths = {
            name: self.knobs.widths(layer.weight.bits)
            for name, layer in self.layers.items()
        }
        self.num_stages = max(map(len, widths.values()), default=1)
        self.widths = {
            name: [found[0]] * (self.num_stages - len(found)) + found
            for name, found in widths.items()
        }
        self.progress = TrainingProgress()
        self.counter = EpochCounter(self.knobs.epochs)
        self.checkpointer = self._checkpointer(folder)
        self.rates = Rates(self.knobs)
        self.teacher: Optional[Teacher] = None
        self.num_steps = 0
        self.terms: dict[str, torch.Tensor] = {}
        self._stage = 0

    def _checkpointer(self, folder: Path) -> TrainingCheckpointer:
        """Return a checkpointer for the modules and the state of training."""
        kept = {"ptq_progress": self.progress, "ptq_counter": self.counter}
        own = self.brain.checkpointer
        recoverables = {} if own is None else own.recoverables
        modules = {
            name: obj
            for name, obj in recoverables.items()
            if isinstance(obj, nn.Module)
        }
        held = {id(m) for obj in modules.values() for m in obj.modules()}
        for name, module in self.conversion.root.items():
            if any(id(m) not in held for m in module.modules()):
                modules[f"module_{name}"] = module
        found = TrainingCheckpointer(
            folder, {**modules, "brain": self.brain, **kept}
        )
        found.progress = self.progress
        return found

    # -- layers --------------------------------------------------------------

    def prepare(self) -> None:
        """Turn the layers of the plan into layers in training."""
        for name, layer in self.layers.items():
            self.conversion.set(name, layer)
        for name in self.layers:
            first = self._at_stage(name, 0)
            make_trainable(self.conversion.layer(name), first)

    def _at_stage(self, name: str, stage: int) -> LayerPlan:
        """Return the plan of a layer at a stage of the lowering."""
        plan, bits = self.layers[name], self.widths[name][stage]
        if bits == plan.weight.bits:
            return plan
        return dataclasses.replace(
            plan, weight=self.settings.weight_scheme(bits)
        )

    def _enter(self, stage: int, resumed: bool = False) -> None:
        """Set the widths of a stage; steps start anew unless resumed."""
        for name in self.layers:
            before, after = (
                self._at_stage(name, s) for s in (self._stage, stage)
            )
            if before.weight != after.weight:
                layer = self.conversion.layer(name)
                set_weight_scheme(layer, after, keep_steps=resumed)
        self._stage = self.progress.stage = stage

    # -- training ------------------------------------------------------------

    def run(self, fit: Callable, call: dict[str, Any]) -> None:
        """Train.

        Arguments
        ---------
        fit : callable
            The recipe's own ``fit``.
        call : dict
            The arguments that it was called with.
        """
        brain = self.brain
        self.teacher = Teacher(self.conversion.root, self.knobs)
        self.prepare()
        self.teacher.choose()
        brain.step, brain.avg_train_loss, brain.optimizer_step = 0, 0.0, 0
        with self._hung_in(), frozen_but(brain, self.conversion.root):
            loader = call["train_set"]
            if not hasattr(loader, "batch_sampler"):
                loader = brain.make_dataloader(
                    loader,
                    stage=sb.Stage.TRAIN,
                    **call.get("train_loader_kwargs") or {},
                )
            per_epoch = len(loader)
            if brain.debug:
                per_epoch = min(per_epoch, brain.debug_batches)
            self.num_steps = per_epoch * self.knobs.epochs
            self._announce()
            arguments = {**call, "train_set": loader}
            arguments["epoch_counter"] = self.counter
            arguments.pop("self", None)
            fit(**arguments)

    def _announce(self) -> None:
        stages = sorted({tuple(w) for w in self.widths.values()})
        logger.info(
            "Quantization-aware training: %d layers, of which %d learn, "
            "%d epochs of %d steps, weight bits %s, distillation from %d "
            "blocks and %s",
            len(self.layers),
            sum(
                any(p.requires_grad for p in layer.parameters(recurse=False))
                for layer in trainable_layers(self.conversion.root).values()
            ),
            self.knobs.epochs,
            self.num_steps // self.knobs.epochs,
            ", ".join("-".join(map(str, s)) for s in stages),
            len(self.teacher.blocks),
            self.teacher.output or "no output layer",
        )
        if not (self.knobs.task_weight or self.teacher.compares):
            logger.warning(
                "task_weight is 0 and no blocks or output layer were found to "
                "distil from: name them in training: hidden_layers."
            )

    @contextlib.contextmanager
    def _hung_in(self) -> Iterator[None]:
        """Put our functions in front of the Brain's, on the instance.

        `preserved` takes them off again.
        """
        brain = self.brain
        wrapped = {
            "compute_forward": self._forward,
            "compute_objectives": self._objectives,
            "init_optimizers": self._init_optimizers,
        }
        for name, wrapper in wrapped.items():
            setattr(brain, name, _bound(wrapper, getattr(brain, name)))
        hparams = vars(brain.hparams)
        swapped = {
            key: value
            for key, value in hparams.items()
            if isinstance(value, Checkpointer)
        }
        brain.checkpointer = self.checkpointer
        hparams.update(dict.fromkeys(swapped, self.checkpointer))
        try:
            yield
        finally:
            hparams.update(swapped)

    def _init_optimizers(self, init, *args, **kwargs):
        result = init(*args, **kwargs)
        self.rates.take(self.brain, self.conversion.root)
        return result

    def _forward(self, forward, batch, stage, *args, **kwargs):
        """Run the recipe's forward, before it the float model's."""
        if stage != sb.Stage.TRAIN:
            return forward(batch, stage, *args, **kwargs)
        self._step()
        if not (self.knobs.distils and self.teacher.compares):
            return forward(batch, stage, *args, **kwargs)
        with same_random_numbers(), self.teacher.teaching():
            forward(batch, stage, *args, **kwargs)
        with self.teacher.learning():
            return forward(batch, stage, *args, **kwargs)

    def _step(self) -> None:
        """Set the stage and the rates for this batch."""
        done = self.progress.step / max(1, self.num_steps)
        stage = self.knobs.stage(done, self.num_stages)
        if stage != self._stage:
            self._enter(stage, resumed=self.progress.stage == stage)
            logger.info("Weights now have %s bits", self._bits())
        self.rates.set(self.knobs.rate(done))
        self.progress.step += 1

    def _bits(self) -> str:
        used = {widths[self._stage] for widths in self.widths.values()}
        return ", ".join(map(str, sorted(used)))

    def _objectives(self, objectives, predictions, batch, stage, **kwargs):
        """Add the distillation terms to the recipe's loss."""
        loss = objectives(predictions, batch, stage, **kwargs)
        if stage != sb.Stage.TRAIN:
            return loss
        self.terms = self.teacher.losses()
        total = self.knobs.task_weight * loss
        return total + sum(self.terms.values())

    # -- the result ------------------------------------------------------------

    def load(self, keys: dict[str, Optional[str]]) -> dict[str, Any]:
        """Load the best checkpoint of the training into the layers.

        Arguments
        ---------
        keys : dict
            ``min_key`` or ``max_key``, as in ``evaluate``.

        Returns
        -------
        dict
            For the report: name, epoch and meta data of the checkpoint.

        Raises
        ------
        CheckpointError
            If the training has not reached its last stage.
        """
        self.prepare()
        self._enter(self.num_stages - 1)
        keys = {k: v for k, v in keys.items() if v is not None}
        found = self.checkpointer.find_checkpoint(
            **keys,
            ckpt_predicate=lambda c: c.meta.get("ptq_stage") == self._stage,
        )
        if found is None:
            raise CheckpointError(
                f"{self.checkpointer.checkpoints_dir} has no checkpoint of "
                "quantization-aware training that can be used. Run the recipe "
                "without --test_only, so that it trains."
            )
        modules = {
            name: obj
            for name, obj in self.checkpointer.recoverables.items()
            if isinstance(obj, nn.Module)
        }
        loader = Checkpointer(self.checkpointer.checkpoints_dir, modules)
        loader.load_checkpoint(found)
        meta = {k: v for k, v in found.meta.items() if k != "unixtime"}
        return {"checkpoint": found.path.name, "meta": meta}

    def result(self) -> tuple[QuantizationPlan, dict]:
        """Return plan and integers of the layers as they are now."""
        layers, weights = dict(self.plan.layers), {}
        for name, plan in self.layers.items():
            layer = self.conversion.layer(name)
            weights[name] = trained_weights(layer)
            layers[name] = dataclasses.replace(
                plan, inputs=trained_inputs(layer, plan), rounding="trained"
            )
        return dataclasses.replace(self.plan, layers=layers), weights


def _bound(wrapper: Callable, function: Callable) -> Callable:
    def call(*args, **kwargs):
        return wrapper(function, *args, **kwargs)

    return call


@contextlib.contextmanager
def frozen_but(brain: sb.Brain, root: nn.Module) -> Iterator[None]:
    """Train only what is below a root; the rest stays as it is."""
    ours = {id(p) for p in root.parameters()}
    others = [p for p in brain.modules.parameters() if id(p) not in ours]
    before = [(p, p.requires_grad) for p in others]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, value in before:
            parameter.requires_grad_(value)
