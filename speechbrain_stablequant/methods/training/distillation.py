"""Distillation from the float model to itself in training.

The teacher is the same modules with the values from before: no second model
is built, and whatever a recipe does around the modules is done alike.
"""

import contextlib
import random
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.errors import KnobError, nearest
from speechbrain_stablequant.layers.modules import evaluating
from speechbrain_stablequant.methods.training.layers import (
    float_mode,
    trainable_layers,
)
from speechbrain_stablequant.methods.training_settings import TrainingSettings

__all__ = ["Teacher", "find_blocks", "find_output", "same_random_numbers"]


def find_blocks(root: nn.Module, layers: list[str], patterns=()) -> list[str]:
    """Return the names of the blocks whose outputs are hidden states.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    layers : list of str
        Its layers that are quantized.
    patterns : list of str
        The user's choice; empty for elements of a ``ModuleList`` of alike
        blocks, each with several of these layers.

    Returns
    -------
    list of str
        In the order of the model.
    """
    names = [name for name, _ in root.named_modules() if name]
    if patterns:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise KnobError(
                    f"training: hidden_layers: '{pattern}' matches no module."
                    + nearest(pattern, names)
                )
        return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]
    found: list[str] = []
    for name, module in root.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue  # inside a block
        if len({type(child) for child in module}) == 1:
            prefix = f"{name}." if name else ""
            elements = [f"{prefix}{i}" for i in range(len(module))]
            for element in elements:
                inside = [n for n in layers if n.startswith(f"{element}.")]
                if len(inside) > 1:
                    found.append(element)
    return found


def find_output(
    root: nn.Module, layers: list[str], blocks: list[str], wanted: Optional[str]
) -> Optional[str]:
    """Return the name of the layer whose outputs are logits, or None.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    layers : list of str
        Its layers that are quantized.
    blocks : list of str
        See `find_blocks`; a layer inside of them gives no logits.
    wanted : str, optional
        The user's choice: a name, ``auto`` or None.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        names = [name for name, _ in root.named_modules() if name]
        if wanted not in names:
            raise KnobError(
                f"training: output_layer: the model has no module '{wanted}'."
                + nearest(wanted, names)
            )
        return wanted
    inside = tuple(f"{block}." for block in blocks)
    last = layers[-1] if layers else ""
    linear = last and isinstance(root.get_submodule(last), nn.Linear)
    return last if linear and not last.startswith(inside) else None


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore the states of all random generators when the block ends.

    The recipe's forward runs twice a batch, for the teacher and for the model
    in training; augmentation must be the same in both, or their outputs could
    not be compared.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if cuda else ()
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


class Teacher:
    """Holds the values of the float model and compares outputs.

    Arguments
    ---------
    root : torch.nn.Module
        The model with the float values to imitate.
    settings : TrainingSettings
        The options.
    """

    def __init__(self, root: nn.Module, settings: TrainingSettings):
        self.root, self.settings = root, settings
        tensors = [*root.parameters(), *root.buffers()]
        self._values = [(t, t.detach().clone()) for t in tensors]
        self.blocks: list[str] = []
        self.output: Optional[str] = None
        self._taught: dict[str, torch.Tensor] = {}
        self._own: dict[str, torch.Tensor] = {}

    def choose(self) -> None:
        """Choose what is compared, once the layers are in training."""
        layers = list(trainable_layers(self.root))
        settings = self.settings
        if settings.hidden_weight:
            self.blocks = find_blocks(self.root, layers, settings.hidden_layers)
        if settings.output_weight:
            blocks = self.blocks or find_blocks(self.root, layers)
            self.output = find_output(
                self.root, layers, blocks, settings.output_layer
            )

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self.blocks or self.output)

    @contextlib.contextmanager
    def teaching(self) -> Iterator[None]:
        """Run the modules as the float model; its outputs are kept."""
        self._swap()
        try:
            with (
                torch.no_grad(),
                evaluating([self.root]),
                float_mode(self.root),
                self._recorded(self._taught),
            ):
                yield
        finally:
            self._swap()

    def learning(self):
        """Keep the outputs of the model in training while a block runs."""
        return self._recorded(self._own)

    def _swap(self) -> None:
        """Exchange the values in the modules with those that are kept.

        By ``data``: the ``Parameter`` objects stay, and with them what an
        optimizer holds of them.
        """
        for i, (tensor, value) in enumerate(self._values):
            self._values[i] = (tensor, tensor.data)
            tensor.data = value

    @contextlib.contextmanager
    def _recorded(self, into: dict) -> Iterator[None]:
        into.clear()
        names = [*self.blocks, *([self.output] if self.output else [])]
        with contextlib.ExitStack() as hooks:
            for name in names:

                def keep(module, inputs, output, name=name):
                    first = output[0] if isinstance(output, tuple) else output
                    if isinstance(first, torch.Tensor):
                        into[name] = first

                module = self.root.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(keep))
            yield

    def losses(self) -> dict[str, torch.Tensor]:
        """Return the weighted terms ``hidden`` and ``output`` of the loss."""
        settings, found = self.settings, {}
        # Layer drop leaves out a block of one of the two.
        pairs = [
            (self._own[n], self._taught[n])
            for n in self.blocks
            if n in self._own and n in self._taught
        ]
        if pairs:
            distances = [relative_distance(own, his) for own, his in pairs]
            mean = torch.stack(distances).mean()
            found["hidden"] = settings.hidden_weight * mean
        if self.output in self._own and self.output in self._taught:
            found["output"] = settings.output_weight * divergence(
                self._own[self.output],
                self._taught[self.output],
                settings.temperature,
            )
        return found


def relative_distance(own: torch.Tensor, taught: torch.Tensor):
    """Return the squared distance of hidden states, relative to their power.

    Arguments
    ---------
    own, taught : torch.Tensor
        Of the same shape; the power is that of ``taught``.

    Example
    -------
    >>> x = torch.tensor([1.0, 2.0])
    >>> float(relative_distance(x, x)), float(relative_distance(0 * x, x))
    (0.0, 1.0)
    """
    own, taught = own.to(torch.float32), taught.to(torch.float32)
    power = taught.square().mean().clamp(min=1e-12)
    return (own - taught).square().mean() / power


def divergence(own: torch.Tensor, taught: torch.Tensor, temperature: float):
    """Return the Kullback-Leibler divergence of logits, a mean over frames.

    Arguments
    ---------
    own, taught : torch.Tensor
        (..., classes) logits or log-probabilities.
    temperature : float
        Both are divided by it; the result is multiplied by its square, so
        that gradients keep their size (Hinton et al. 2015).
    """
    own, taught = (
        (x.to(torch.float32) / temperature).log_softmax(-1).flatten(0, -2)
        for x in (own, taught)
    )
    loss = F.kl_div(own, taught, log_target=True, reduction="batchmean")
    return loss * temperature**2
