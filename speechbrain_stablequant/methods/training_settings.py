"""The options of quantization-aware training, checked in one place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from speechbrain_stablequant.core.options import (
    build_options,
    check_list,
    check_numbers,
    check_whole_number,
)
from speechbrain_stablequant.errors import KnobError

__all__ = ["TrainingSettings"]

# Gradual lowering: the bit widths that lead to a target.
_STAGES = {1: (4, 2), 2: (4,)}
_LIMITS = (
    ("epochs", 1, math.inf),
    ("lr_factor", 0, math.inf),
    ("lr", 0, math.inf),
    ("step_lr", 0, math.inf),
    ("warmup", 0, 0.9),
    ("lowering", 0, 0.9),
    ("task_weight", 0, math.inf),
    ("hidden_weight", 0, math.inf),
    ("output_weight", 0, math.inf),
    ("temperature", 0.01, 100),
)


@dataclass(frozen=True)
class TrainingSettings:
    """Options below ``training`` of ``method: quantization_aware``.

    Arguments
    ---------
    epochs : int
        Epochs of the recipe's own loop, after its float ones.
    lr_factor : float
        Learning rates are those that the recipe's optimizers begin with (where
        a schedule begins with 0: those that it has ended with) times this,
        and fall linearly to zero; the recipe's schedulers are overridden.
    lr : float, optional
        One learning rate for all instead.
    step_lr : float
        Learning rate of the logarithms of step sizes, before it falls too.
    warmup : float
        Part of the training in which rates rise from zero.
    stages : list of int, optional
        Bit widths of weights that the training passes through on its way
        to ``bits``; by default 4 for 2 bits, 4 and 2 for 1 bit. ``[]``: none.
    lowering : float
        Part of the training that these take together.
    first_last : str
        Bit widths of the first and the last layer, where these are not part
        of a repeated block; ``layer_bits`` takes precedence. ``W32``: float.
    task_weight : float
        Weight of the recipe's own loss; 0 trains by distillation alone.
    hidden_weight : float
        Weight of the distance between hidden states of the float model and of
        the quantized one: squared, relative to the former's power, averaged
        over the blocks.
    output_weight : float
        Weight of the Kullback-Leibler divergence between their outputs.
    temperature : float
        Of that divergence.
    hidden_layers : list of str
        Blocks whose outputs are compared: names with ``*`` wildcards. By
        default the elements of lists of alike blocks with several layers.
    output_layer : str, optional
        Layer whose outputs are logits; ``auto``: the last linear layer outside
        of such blocks; null: none.

    Raises
    ------
    KnobError
        For an unknown option or a value out of range.
    """

    epochs: int = 5
    lr_factor: float = 0.5
    lr: Optional[float] = None
    step_lr: float = 5e-4
    warmup: float = 0.05
    stages: Optional[Sequence[int]] = None
    lowering: float = 0.3
    first_last: str = "W8A8"
    task_weight: float = 1.0
    hidden_weight: float = 1.0
    output_weight: float = 1.0
    temperature: float = 1.0
    hidden_layers: Union[str, Sequence[str]] = ()
    output_layer: Optional[str] = "auto"

    @classmethod
    def from_options(cls, options: Any) -> "TrainingSettings":
        """Build settings from the mapping that the user wrote."""
        return build_options(
            cls, options, "training", "{epochs: 5, lr_factor: 0.5}"
        )

    def __post_init__(self):
        check_numbers(self, _LIMITS, "training: ")
        check_whole_number("training: epochs", self.epochs, 1)
        if isinstance(self.hidden_layers, str):
            object.__setattr__(self, "hidden_layers", (self.hidden_layers,))
        names = [*self.hidden_layers, self.output_layer or "", self.first_last]
        for name in names:
            if not isinstance(name, str):
                raise KnobError(
                    f"training: {name!r} cannot be the name of a layer."
                )
        stages = () if self.stages is None else self.stages
        check_list("training: stages", stages, "[4, 2]")
        for bits in stages:
            check_whole_number("training: bit widths of stages", bits, 1, 8)
        if list(stages) != sorted(stages, reverse=True):
            raise KnobError(
                f"training: stages {list(stages)} must fall, widest first."
            )
        if not (self.task_weight or self.hidden_weight or self.output_weight):
            raise KnobError(
                "training: task_weight, hidden_weight and output_weight are "
                "all 0: there is nothing to train by."
            )

    def bit_widths(self, target: int) -> list[int]:
        """Return the bit widths that a layer passes through, the last its own.

        Arguments
        ---------
        target : int
            Its own.

        Example
        -------
        >>> TrainingSettings().bit_widths(1), TrainingSettings().bit_widths(8)
        ([4, 2, 1], [8])
        """
        stages = _STAGES.get(target, ()) if self.stages is None else self.stages
        return [*(bits for bits in stages if bits > target), target]

    def rate(self, done: float) -> float:
        """Return what part of the rates is in use, after a part of training.

        Arguments
        ---------
        done : float
            That part, 0 to 1.

        Example
        -------
        >>> [TrainingSettings(warmup=0.5).rate(x) for x in (0.25, 0.5, 1.0)]
        [0.5, 1.0, 0.0]
        """
        if done < self.warmup:
            return done / self.warmup
        return max(0.0, (1.0 - done) / (1.0 - self.warmup))

    def stage(self, done: float, count: int) -> int:
        """Return which of ``count`` stages is current after a part of training.

        Arguments
        ---------
        done : float
            That part, 0 to 1.
        count : int
            How many stages there are.

        Example
        -------
        >>> [TrainingSettings(lowering=0.5).stage(x, 3) for x in (0, 0.3, 0.5)]
        [0, 1, 2]
        """
        if count == 1 or done >= self.lowering:
            return count - 1
        return int(done / self.lowering * (count - 1))
