"""What decides what a module computes, besides the arguments of a call.

Weights and training mode are seen by themselves. Where plain Python state
decides as well, a module says so by a method without arguments::

    def execution_state(self):
        return self.language

It returns plain data (None, numbers, texts, or tuples of these), equal only
where ``forward`` computes the same; a runtime keeps one compiled graph for
each value. `IN_PARTS` says that no graph should be made of the module now,
nor of what contains it: they run as plain Python, and the modules inside
compiled. A ``forward`` may read its state, but not change it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import nn

from speechbrain_stablequant.errors import RuntimeConversionError

__all__ = ["IN_PARTS", "ModuleState", "execution_states"]

_PLAIN = (bool, int, float, str, type(None))


class _InParts:
    def __repr__(self):
        return "IN_PARTS"

    def __reduce__(self):
        return "IN_PARTS"  # copies are the same object


IN_PARTS = _InParts()


class ModuleState(NamedTuple):
    """Tensors and modes of a module and of all inside it.

    Arguments
    ---------
    identity : tuple
        Changes when somebody loads, assigns or changes a tensor, or switches
        a module to training mode.
    held : list of torch.Tensor
        The tensors: while they are held, no other tensor gets the identity of
        one.
    stateful : list of torch.nn.Module
        Modules with an ``execution_state``.
    """

    identity: tuple = ()
    held: Sequence[torch.Tensor] = ()
    stateful: Sequence[nn.Module] = ()

    @classmethod
    def of(cls, module: nn.Module) -> "ModuleState":
        """Return the state that a module is in now."""
        state, held, stateful = [], [], []
        for child in module.modules():
            state.append(child.training)
            # Of the class: a module searches long for what it does not have.
            if getattr(type(child), "execution_state", None) is not None:
                stateful.append(child)
            for store in (child._parameters, child._buffers):
                for tensor in store.values():
                    if tensor is not None:
                        inference = tensor.is_inference()
                        version = 0 if inference else tensor._version
                        state.append((id(tensor), version))
                        held.append(tensor)
        return cls(tuple(state), held, stateful)


def execution_states(stateful: Sequence[nn.Module]) -> Optional[tuple]:
    """Return what modules say about their state.

    Arguments
    ---------
    stateful : sequence of torch.nn.Module
        Modules with an ``execution_state``.

    Returns
    -------
    tuple of str or None
        Equal where states are, also in another process; None where one of
        them is `IN_PARTS`.

    Raises
    ------
    RuntimeConversionError
        If a state is not plain data.

    Example
    -------
    >>> class Greeting(nn.Identity):
    ...     language = "en"
    ...
    ...     def execution_state(self):
    ...         return self.language
    >>> model = nn.Sequential(nn.Linear(2, 2), Greeting())
    >>> execution_states(ModuleState.of(model).stateful)
    ("'en'",)
    >>> model[1].language = IN_PARTS
    >>> execution_states([model[1]]) is None
    True
    """
    states = []
    for module in stateful:
        state = module.execution_state()
        if state is IN_PARTS:
            return None
        _check_plain(state, module)
        states.append(repr(state))  # tells 1 from 1.0 and True
    return tuple(states)


def _check_plain(state: Any, module: nn.Module) -> None:
    if isinstance(state, tuple):
        for part in state:
            _check_plain(part, module)
    elif not isinstance(state, _PLAIN):
        raise RuntimeConversionError(
            f"execution_state of {type(module).__name__} returned something of "
            f"type {type(state).__name__}: return numbers, texts, None, or "
            "tuples of these"
        )
