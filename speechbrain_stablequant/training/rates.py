"""Learning rates of quantization-aware training, for any optimizers."""

import torch
from torch import nn

from speechbrain_stablequant.training.layers import step_parameters
from speechbrain_stablequant.training.settings import TrainingSettings

__all__ = ["Rates"]


class Rates:
    """Sets the learning rates of a Brain's optimizers, batch by batch.

    Step sizes get groups of their own: another rate, and no weight decay,
    which would pull their logarithms towards zero.

    Arguments
    ---------
    settings : TrainingSettings
        The knobs.
    """

    def __init__(self, settings: TrainingSettings):
        self.settings = settings
        self._groups: list[tuple[torch.optim.Optimizer, list[float]]] = []

    def take(self, brain, root: nn.Module) -> None:
        """Take over the optimizers that a Brain has just made."""
        steps = {id(p) for p in step_parameters(root)}
        values = [
            *vars(brain).values(),
            *(brain.optimizers_dict or {}).values(),
        ]
        optimizers = {
            id(v): v for v in values if isinstance(v, torch.optim.Optimizer)
        }
        self._groups = []
        for optimizer in optimizers.values():
            _split(optimizer, steps)
            rates = [
                self.settings.step_lr
                if all(id(p) in steps for p in group["params"])
                else float(group["lr"]) * self.settings.lr_factor
                for group in optimizer.param_groups
            ]
            self._groups.append((optimizer, rates))

    def set(self, part: float) -> None:
        """Set all rates to a part of their highest."""
        for optimizer, rates in self._groups:
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * part


def _split(optimizer: torch.optim.Optimizer, steps: set) -> None:
    """Move step sizes into groups of their own."""
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
