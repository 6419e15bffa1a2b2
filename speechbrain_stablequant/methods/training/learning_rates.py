"""Learning rates of quantization-aware training, for any optimizers."""

import torch
from torch import nn

from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.methods.training.layers import step_parameters
from speechbrain_stablequant.methods.training_settings import TrainingSettings

__all__ = ["Rates"]


class Rates:
    """Sets the learning rates of a Brain's optimizers, batch by batch.

    Step sizes get groups of their own: another rate, and no weight decay,
    which would pull their logarithms towards zero.

    Arguments
    ---------
    settings : TrainingSettings
        The options.
    """

    def __init__(self, settings: TrainingSettings):
        self.settings = settings
        self._before: dict[str, list[float]] = {}
        self._groups: list[tuple[torch.optim.Optimizer, list[float]]] = []

    def note(self, brain) -> None:
        """Note the rates that the float training has ended with.

        Arguments
        ---------
        brain : speechbrain.Brain
            Before it makes its optimizers anew.
        """
        self._before = {
            name: [float(group["lr"]) for group in optimizer.param_groups]
            for name, optimizer in _optimizers(brain).items()
        }

    def take(self, brain, root: nn.Module) -> None:
        """Take over the optimizers that a Brain has just made.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        root : torch.nn.Module
            What is trained.

        Raises
        ------
        KnobError
            If the rate of an optimizer cannot be known.
        """
        steps = {id(p) for p in step_parameters(root)}
        self._groups = []
        for name, optimizer in _optimizers(brain).items():
            rates = [
                self._rate(name, i, float(group["lr"]))
                for i, group in enumerate(optimizer.param_groups)
            ]
            rates += [0.0] * _split(optimizer, steps)
            for i, group in enumerate(optimizer.param_groups):
                if all(id(p) in steps for p in group["params"]):
                    rates[i] = self.settings.step_lr
            self._groups.append((optimizer, rates))

    def _rate(self, name: str, index: int, begins_with: float) -> float:
        """Return the highest rate of a group.

        Where a schedule raises it from 0, the recipe's optimizer begins with
        0; then it is the rate that the float training has ended with.
        """
        if self.settings.lr is not None:
            return self.settings.lr
        before = self._before.get(name, [])
        rate = begins_with or (before[index] if index < len(before) else 0.0)
        if not rate:
            raise KnobError(
                f"The learning rate of {name} begins with 0 and is not known "
                "from a float training either: give training: {lr: ...}."
            )
        return rate * self.settings.lr_factor

    def set(self, part: float) -> None:
        """Set all rates to a part of their highest.

        Arguments
        ---------
        part : float
            0 to 1.
        """
        for optimizer, rates in self._groups:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * part


def _optimizers(brain) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a Brain by name, each of them once."""
    held = {**vars(brain), **(getattr(brain, "optimizers_dict", None) or {})}
    found = {
        id(value): (name, value)
        for name, value in held.items()
        if isinstance(value, torch.optim.Optimizer)
    }
    return dict(found.values())


def _split(optimizer: torch.optim.Optimizer, steps: set) -> int:
    """Move step sizes into groups of their own; return how many are new."""
    before = len(optimizer.param_groups)
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in steps]
        if not mine:
            continue
        if len(mine) < len(group["params"]):
            others = [p for p in group["params"] if id(p) not in steps]
            options = {k: v for k, v in group.items() if k != "params"}
            group["params"] = others
            optimizer.add_param_group({**options, "params": mine})
            group = optimizer.param_groups[-1]
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    return len(optimizer.param_groups) - before
