"""In-place changes of modules that can be taken back bit for bit."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["ModuleSnapshot", "unchanged"]

# What conversion may change. Other hooks, and a ``forward`` set on the instance
# (the search's prefix cache), belong to whoever put them there.
_REGISTRIES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_forward_pre_hooks",
)
_VOLATILE = ("training", "forward", "_forward_hooks", "_backward_hooks")


class ModuleSnapshot:
    """A module's class, parameters, buffers and attributes at one moment.

    Tensors are kept by reference: the same ``Parameter`` objects come back, so
    that an optimizer that holds them still works.

    Arguments
    ---------
    module : torch.nn.Module
        Module to remember.

    Example
    -------
    >>> import torch
    >>> linear = torch.nn.Linear(2, 2)
    >>> weight, state = linear.weight, ModuleSnapshot(linear)
    >>> del linear.weight
    >>> state.apply()
    >>> linear.weight is weight
    True
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.float_class = type(module)
        self.attributes: dict[str, Any] = {
            key: value.copy() if key in _REGISTRIES else value
            for key, value in vars(module).items()
            if key not in _VOLATILE
        }

    def apply(self) -> None:
        """Bring the module back to this state."""
        current = vars(self.module)
        kept = {key: current[key] for key in _VOLATILE if key in current}
        current.clear()
        self.module.__class__ = self.float_class
        for key, value in self.attributes.items():
            current[key] = value.copy() if key in _REGISTRIES else value
        current.update(kept)


@contextlib.contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Bring modules back as they were: values, attributes, identities."""
    parts = {part: None for module in modules for part in module.modules()}
    states = [ModuleSnapshot(part) for part in parts]
    values, containers = {}, {}
    for part in parts:
        own = [*part._parameters.values(), *part._buffers.values()]
        for value in (*own, *vars(part).values()):
            if isinstance(value, torch.Tensor):
                values[id(value)] = (value, value.detach().clone())
        # Statistics of SpeechBrain's normalization are kept in dictionaries.
        for key, value in vars(part).items():
            if isinstance(value, dict) and not key.startswith("_"):
                containers[id(value)] = (value, dict(value))
    try:
        yield
    finally:
        for state in states:
            state.apply()
        with torch.no_grad():
            for tensor, value in values.values():
                tensor.copy_(value)
        for container, content in containers.values():
            container.clear()
            container.update(content)
