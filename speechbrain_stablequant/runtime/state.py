"""The state that a module's results depend on, besides the arguments of a call.

Changes of weights and of training mode are noticed. Where results depend on
plain Python attributes as well, a module reports them by a method::

    def execution_state(self):
        return self.language

It returns plain data (None, numbers, texts, or tuples of these), equal only if
``forward`` computes the same; a runtime keeps one compiled graph for each
value. `IN_PARTS` means that no graph can be made of the module in this state,
nor of modules that contain it: they run as plain Python, and the modules
inside run compiled. A ``forward`` may read this state, but must not change it:
graphs of it would not.
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
        Changes when a tensor is loaded, assigned or changed in place, or when
        a module is switched to training mode.
    held : list of torch.Tensor
        The tensors. Holding them keeps their ``id`` from being reused for a
        new tensor.
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
            # Looked up on the class: nn.Module.__getattr__ is slow for names
            # that do not exist, and this runs at each call.
            if getattr(type(child), "execution_state", None) is not None:
                stateful.append(child)
            for store in (child._parameters, child._buffers):
                for tensor in store.values():
                    if tensor is not None:
                        # In-place changes raise the version; tensors made in
                        # inference mode have none.
                        inference = tensor.is_inference()
                        version = 0 if inference else tensor._version
                        state.append((id(tensor), version))
                        held.append(tensor)
        return cls(tuple(state), held, stateful)


def execution_states(stateful: Sequence[nn.Module]) -> Optional[tuple]:
    """Return the states that modules report.

    Arguments
    ---------
    stateful : sequence of torch.nn.Module
        Modules with an ``execution_state``.

    Returns
    -------
    tuple of str or None
        Equal if the states are, also in another process; None if one of
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
