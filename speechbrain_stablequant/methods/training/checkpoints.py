"""Checkpoints of quantization-aware training, through SpeechBrain's own."""

import json
from pathlib import Path
from typing import Any

import speechbrain as sb
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import nn

__all__ = ["TrainingCheckpointer", "TrainingProgress", "training_checkpointer"]

_SCALER = "scaler"  # SpeechBrain's name for that of mixed precision


@register_checkpoint_hooks
class TrainingProgress:
    """How far a training has come.

    Attributes
    ----------
    step : int
        Batches seen.
    stage : int
        Which of the bit widths is in use.
    """

    def __init__(self):
        self.step = 0
        self.stage = 0

    @mark_as_saver
    def save(self, path):
        """Write both numbers to a file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"step": self.step, "stage": self.stage}, file)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read both numbers from a file."""
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        self.step, self.stage = int(found["step"]), int(found["stage"])


class TrainingCheckpointer(Checkpointer):
    """A checkpointer that deletes the checkpoints of earlier stages.

    A recipe keeps the checkpoint with the best metric. An earlier stage, with
    more bits, scores better, but is not the model that is wanted.
    """

    progress: TrainingProgress

    def save_checkpoint(self, meta=None, *args, **kwargs):
        """Save as usual, then delete what an earlier stage has left."""
        stage = self.progress.stage
        meta = {**(meta or {}), "ptq_stage": stage}
        saved = super().save_checkpoint(meta, *args, **kwargs)
        self.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda c: c.meta.get("ptq_stage") != stage,
        )
        return saved


def training_checkpointer(
    folder: Path, brain: sb.Brain, root: nn.ModuleDict, state: dict[str, Any]
) -> TrainingCheckpointer:
    """Return a checkpointer for the modules and the state of a training.

    Arguments
    ---------
    folder : Path
        Where its checkpoints go.
    brain : speechbrain.Brain
        Modules that its own checkpointer saves are saved by the same names.
    root : torch.nn.ModuleDict
        What is trained; saved as well where that does not contain it.
    state : dict
        Further recoverables, ``ptq_progress`` among them.
    """
    own = brain.checkpointer
    recoverables = {} if own is None else own.recoverables
    modules = {
        name: obj
        for name, obj in recoverables.items()
        if isinstance(obj, nn.Module)
    }
    held = {id(m) for obj in modules.values() for m in obj.modules()}
    for name, module in root.items():
        if any(id(m) not in held for m in module.modules()):
            modules[f"module_{name}"] = module
    found = TrainingCheckpointer(folder, {**modules, "brain": brain, **state})
    found.progress = state["ptq_progress"]
    if own is not None:
        for kind in ("custom_load_hooks", "custom_save_hooks"):
            hooks = getattr(own, kind)
            kept = {n: hook for n, hook in hooks.items() if n in modules}
            getattr(found, kind).update(kept)
    if _SCALER in recoverables:
        found.add_recoverable(
            _SCALER, recoverables[_SCALER], optional_load=True
        )
    return found
