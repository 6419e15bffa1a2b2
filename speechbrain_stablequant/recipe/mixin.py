"""The mixin of a Brain: it hands ``fit`` and ``evaluate`` to the block.

Only ``fit`` and ``evaluate`` are overridden, which no recipe of SpeechBrain
overrides itself; all ``on_*`` hooks stay the recipe's.
"""

import inspect
from typing import Any, Optional

import speechbrain as sb

from speechbrain_stablequant.recipe.block import RecipeBlock
from speechbrain_stablequant.recipe.checkpoint_selection import noted_keys

__all__ = ["PostTrainingQuantizationMixin", "attach"]


class PostTrainingQuantizationMixin:
    """Adds post-training quantization to a Brain.

    List it before ``sb.Brain``; the ``ptq`` block of the hparams does the
    rest. Without such a block nothing changes. A block that is given the
    recipe's ``checkpointer`` adds this mixin by itself.

    Example
    -------
    >>> class ASR(PostTrainingQuantizationMixin, sb.Brain):
    ...     pass
    """

    def fit(self, *args, **kwargs):
        """Train as usual; remember the validation data for calibration."""
        block = _find_block(self)
        if block is None:
            return super().fit(*args, **kwargs)
        call = _bind(sb.Brain.fit, self, args, kwargs)
        block.remember_data(
            call.get("valid_set"), call.get("valid_loader_kwargs") or {}
        )
        with noted_keys(self.checkpointer) as keys:
            result = super().fit(*args, **kwargs)
        block.after_fit(self, keys, (super().fit, call))
        return result

    def evaluate(self, *args, **kwargs):
        """Evaluate the float model as usual, then the quantized one."""
        block = _find_block(self)
        if block is None:
            return super().evaluate(*args, **kwargs)
        call = _bind(sb.Brain.evaluate, self, args, kwargs)
        keys = {k: call.get(k) for k in ("max_key", "min_key")}
        run = super().evaluate
        return block.evaluate(self, lambda: run(*args, **kwargs), keys)


def attach(brain: sb.Brain, block: RecipeBlock) -> None:
    """Give a Brain instance the mixin and its block.

    Arguments
    ---------
    brain : speechbrain.Brain
        Any instance; its class itself is not changed.
    block : RecipeBlock
        The block of the hparams.
    """
    cls = type(brain)
    if not isinstance(brain, PostTrainingQuantizationMixin):
        bases = (PostTrainingQuantizationMixin, cls)
        brain.__class__ = type(
            cls.__name__, bases, {"__module__": cls.__module__}
        )
    vars(brain)["_stablequant"] = block


def _find_block(brain) -> Optional[RecipeBlock]:
    """Return the attached block, or one among the hparams, by its class."""
    found = vars(brain).get("_stablequant")
    if found is None:
        values = vars(brain.hparams).values() if brain.hparams else ()
        found = next((v for v in values if isinstance(v, RecipeBlock)), None)
        vars(brain)["_stablequant"] = found
    return found


def _bind(function, brain, args, kwargs) -> dict[str, Any]:
    call = inspect.signature(function).bind(brain, *args, **kwargs)
    call.apply_defaults()
    return call.arguments
