"""Quantization-aware training in a recipe's own loop.

The recipe's ``fit`` runs again for a few epochs, with its data, augmentation,
objectives and hooks. What differs: the layers are in training, the rates are
ours, a distillation loss is added, and checkpoints go to a folder of their own.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.logger import get_logger
from torch import nn
from torch.utils.data import DataLoader

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import (
    CheckpointError,
    KnobError,
    StableQuantError,
)
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.modules import as_module_dict
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training.checkpoints import (
    TrainingProgress,
    training_checkpointer,
)
from speechbrain_stablequant.methods.training.distillation import (
    Teacher,
    same_random_numbers,
)
from speechbrain_stablequant.methods.training.learning_rates import Rates
from speechbrain_stablequant.methods.training.stages import Stages

__all__ = ["TrainingLoop"]

logger = get_logger(__name__)


class TrainingLoop:
    """Trains the layers of a plan in the loop of a Brain.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain, with the float weights to start from.
    conversion : Conversion
        Its modules, in float.
    plan : QuantizationPlan
        Bit widths, and ranges of inputs to start from.
    settings : Settings
        The options.
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
        self.brain, self.root = brain, conversion.root
        self.options = settings.training_settings
        self.stages = Stages(conversion, plan, settings)
        self.progress = TrainingProgress()
        epochs = self.options.epochs
        if brain.debug:
            epochs = min(epochs, brain.debug_epochs)
        self.counter = EpochCounter(epochs)
        state = {"ptq_progress": self.progress, "ptq_counter": self.counter}
        self.checkpointer = training_checkpointer(
            folder, brain, self.root, state
        )
        self.rates = Rates(self.options)
        self.teacher: Optional[Teacher] = None
        self.num_steps = 0
        self._trains = False  # whether the recipe is in its TRAIN stage

    # -- training ------------------------------------------------------------

    def run(self, fit: Callable, call: dict[str, Any]) -> None:
        """Train.

        Arguments
        ---------
        fit : callable
            The recipe's own ``fit``.
        call : dict
            The arguments that it was called with.

        Raises
        ------
        KnobError
            If there is nothing to learn from.
        StableQuantError
            If the recipe's loop is of a kind that cannot be taken over.
        """
        brain = self.brain
        self.teacher = Teacher(self.root, self.options)
        self.stages.prepare()
        self.teacher.choose()
        if not (self.options.task_weight or self.teacher.compares):
            raise KnobError(
                "training: task_weight is 0, and no blocks or output layer "
                "were found to distil from: name them in hidden_layers."
            )
        # A limit on steps and a count for warm-up belong to the float training.
        brain.step, brain.avg_train_loss = 0, 0.0
        brain.optimizer_step_limit = None
        with self._patched_brain(), frozen_but(brain, self.root):
            loader = self._loader(call)
            self._announce()
            arguments = {k: v for k, v in call.items() if k != "self"}
            arguments.update(train_set=loader, epoch_counter=self.counter)
            fit(**arguments)

    def _loader(self, call: dict[str, Any]):
        """Return the recipe's training loader, and count its batches."""
        brain, loader = self.brain, call["train_set"]
        if not isinstance(loader, (DataLoader, LoopedLoader)):
            options = call.get("train_loader_kwargs") or {}
            loader = brain.make_dataloader(
                loader, stage=sb.Stage.TRAIN, **options
            )
        try:
            per_epoch = len(loader)
        except TypeError:
            raise StableQuantError(
                "method: quantization_aware has to know how long an epoch is, "
                "and this training set has no length. Give train_loader_kwargs "
                "a looped_nominal_epoch."
            ) from None
        if brain.debug:
            per_epoch = min(per_epoch, brain.debug_batches)
        self.num_steps = max(1, per_epoch * self.counter.limit)
        return loader

    def _announce(self) -> None:
        widths = sorted({tuple(w) for w in self.stages.bit_widths.values()})
        logger.info(
            "Quantization-aware training: %d layers, of which %d learn, "
            "%d epochs of %d steps, weight bits %s, distillation from %d "
            "blocks and %s",
            len(self.stages.layers),
            self.stages.num_learning(),
            self.counter.limit,
            self.num_steps // self.counter.limit,
            ", ".join("-".join(map(str, w)) for w in widths),
            len(self.teacher.blocks),
            self.teacher.output or "no output layer",
        )

    @contextlib.contextmanager
    def _patched_brain(self) -> Iterator[None]:
        """Wrap methods of the Brain, on the instance, and its checkpointers.

        The caller undoes the wrapping: `preserved` restores the attributes of
        the Brain, and `unchanged` its modules. DDP wrappers are taken off
        because ``fit`` wraps the modules anew, and must see the parameters
        that are trained now.
        """
        brain = self.brain
        wrapped = {
            "compute_forward": self._forward,
            "compute_objectives": self._objectives,
            "fit_batch": self._fit_batch,
            "init_optimizers": self._init_optimizers,
        }
        for name, wrapper in wrapped.items():
            setattr(brain, name, partial(wrapper, getattr(brain, name)))
        for name, module in as_module_dict(dict(brain.modules)).items():
            brain.modules[name] = module
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
        self.rates.note(self.brain)
        result = init(*args, **kwargs)
        self.rates.take(self.brain, self.root)
        return result

    def _fit_batch(self, fit_batch, *args, **kwargs):
        """Set stage and rates for a batch of the recipe, then run it."""
        done = self.progress.step / self.num_steps
        stage = self.options.stage(done, self.stages.count)
        self._follow()
        if stage != self.stages.current:
            self.stages.enter(stage)
            self.progress.stage = stage
            bits = ", ".join(map(str, self.stages.bits()))
            logger.info("Weights now have %s bits", bits)
        self.rates.set(self.options.rate(done))
        self.progress.step += 1
        return fit_batch(*args, **kwargs)

    def _follow(self) -> None:
        """Take the stage from a checkpoint that has just been loaded."""
        if self.progress.stage != self.stages.current:
            self.stages.enter(self.progress.stage, keep_steps=True)

    def _forward(self, forward, *args, **kwargs):
        """Run the recipe's forward; in training, the float model's first."""
        given = (*args, *kwargs.values())
        self._trains = sb.Stage.TRAIN in given
        self._follow()
        if not self._trains:
            return forward(*args, **kwargs)
        # At each call: ``fit`` puts all modules into training mode again.
        freeze_running_stats(self.brain, self.root)
        if not self.teacher.compares:
            return forward(*args, **kwargs)
        with same_random_numbers(), self.teacher.teaching():
            forward(*args, **kwargs)
        with self.teacher.learning():
            return forward(*args, **kwargs)

    def _objectives(self, objectives, *args, **kwargs):
        """Add the distillation terms to the recipe's loss."""
        loss = objectives(*args, **kwargs)
        if not self._trains:
            return loss
        if not isinstance(loss, torch.Tensor):
            raise StableQuantError(
                "method: quantization_aware needs one loss, but "
                f"compute_objectives returned a {type(loss).__name__}."
            )
        terms = self.teacher.losses().values()
        return self.options.task_weight * loss + sum(terms)

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
            For the report: name and meta data of the checkpoint.

        Raises
        ------
        CheckpointError
            If the training has not reached its last stage.
        """
        self.stages.prepare()
        self.stages.enter(self.stages.last)
        keys = {k: v for k, v in keys.items() if v is not None}
        found = self.checkpointer.find_checkpoint(
            **keys,
            ckpt_predicate=lambda c: (
                c.meta.get("ptq_stage") == self.stages.last
            ),
        )
        if found is None:
            by = "".join(f" with a {name}" for name in keys.values())
            raise CheckpointError(
                f"{self.checkpointer.checkpoints_dir} has no checkpoint{by} of "
                "the last stage of quantization-aware training. Run the recipe "
                "without --test_only, so that it trains to the end."
            )
        modules = {
            name: obj
            for name, obj in self.checkpointer.recoverables.items()
            if isinstance(obj, nn.Module)
        }
        loader = Checkpointer(
            self.checkpointer.checkpoints_dir,
            modules,
            self.checkpointer.custom_load_hooks,
        )
        loader.load_checkpoint(found)
        meta = {k: v for k, v in found.meta.items() if k != "unixtime"}
        return {"checkpoint": found.path.name, "meta": meta}


@contextlib.contextmanager
def frozen_but(brain: sb.Brain, root: nn.Module) -> Iterator[None]:
    """Train only what is below a root; the rest stays as it is.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain.
    root : torch.nn.Module
        What is trained.
    """
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


def freeze_running_stats(brain: sb.Brain, root: nn.Module) -> None:
    """Keep statistics outside of a root from being updated.

    Arguments
    ---------
    brain : speechbrain.Brain
        The Brain, in training.
    root : torch.nn.Module
        What is trained.
    """
    ours = {id(module) for module in root.modules()}
    for module in brain.modules.modules():
        keeps = hasattr(module, "running_mean") or hasattr(module, "glob_mean")
        if keeps and id(module) not in ours:
            module.training = False
