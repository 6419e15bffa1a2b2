"""Checkpoints of quantization-aware training, through the toolkit's own."""

import json

from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

__all__ = ["TrainingCheckpointer", "TrainingProgress"]


@register_checkpoint_hooks
class TrainingProgress:
    """How far a training has come.

    Attributes
    ----------
    step : int
        Batches seen.
    stage : int
        Which of the widths is in use.
    """

    def __init__(self):
        self.step = 0
        self.stage = 0

    @mark_as_saver
    def save(self, path):
        """Write both numbers."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"step": self.step, "stage": self.stage}, file)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read both numbers."""
        del end_of_epoch
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        self.step, self.stage = int(found["step"]), int(found["stage"])


class TrainingCheckpointer(Checkpointer):
    """A checkpointer that forgets the checkpoints of wider stages.

    A recipe keeps the checkpoint with the best metric; with more bits the
    metric was better, but that is not the model that is wanted.
    """

    progress: TrainingProgress

    def save_checkpoint(self, meta=None, *args, **kwargs):
        """Save, then delete what an earlier stage has left."""
        stage = self.progress.stage
        meta = {**(meta or {}), "ptq_stage": stage}
        saved = super().save_checkpoint(meta, *args, **kwargs)
        self.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda c: c.meta.get("ptq_stage") != stage,
        )
        return saved
