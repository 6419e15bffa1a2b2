"""Calls of modules as flat lists of tensors, and traces of them.

Runtimes take and return lists of tensors. Modules are called with nested
tuples, dicts, numbers and texts. `Signature` separates a call into its tensors
and all the rest, which becomes part of the graph; `OutputStructure` does so
for results.
"""

import contextlib
import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from speechbrain_stablequant.errors import RuntimeConversionError
from speechbrain_stablequant.runtime.trace_patches import traceable

__all__ = [
    "FlatModule",
    "OutputStructure",
    "Signature",
    "inert",
    "is_inert",
    "trace",
]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_STATE = threading.local()


@contextlib.contextmanager
def inert() -> Iterator[None]:
    """Make accelerated modules run as plain torch, in this thread.

    For reference results, and while a module is traced: the modules inside are
    to be part of its graph, not calls of graphs of their own.
    """
    before = is_inert()
    _STATE.inert = True
    try:
        yield
    finally:
        _STATE.inert = before


def is_inert() -> bool:
    """Return whether accelerated modules have to run as plain torch."""
    return getattr(_STATE, "inert", False) or torch.jit.is_tracing()


@dataclass(frozen=True)
class Signature:
    """A way of calling a module: everything but sizes and values of tensors.

    Calls with the same signature can share a compiled graph. A tensor that is
    given twice is one tensor here: SpeechBrain's attention recognises
    self-attention by the identity of query, key and value.

    Arguments
    ---------
    spec : TreeSpec
        Structure of ``(args, kwargs)``.
    leaves : tuple
        For each leaf ``("tensor", index, dtype, dimensions)`` or
        ``("value", value, type)``.
    state : tuple of str
        State of the module, see `speechbrain_stablequant.runtime.state`.
    """

    spec: Any
    leaves: tuple
    state: tuple[str, ...] = ()

    @classmethod
    def of(cls, args, kwargs) -> tuple["Signature", list[torch.Tensor]]:
        """Return the signature of a call and its tensors, each once.

        Raises
        ------
        RuntimeConversionError
            If an argument is neither a tensor nor plain data.
        """
        values, spec = pytree.tree_flatten((args, kwargs))
        leaves, tensors, seen = [], [], {}
        for value in values:
            if isinstance(value, torch.Tensor):
                index = seen.setdefault(id(value), len(tensors))
                if index == len(tensors):
                    tensors.append(value)
                leaves.append(("tensor", index, value.dtype, value.dim()))
            elif isinstance(value, _PLAIN):
                # With the type, because 1 == 1.0 == True, and each may lead
                # through another branch of a forward.
                leaves.append(("value", value, type(value).__name__))
            else:
                raise RuntimeConversionError(
                    f"an argument is a {type(value).__name__}, neither a "
                    "tensor nor plain data"
                )
        return cls(spec, tuple(leaves)), tensors

    def __hash__(self):
        return hash((str(self.spec), self.leaves, self.state))

    def arguments(self, tensors: Sequence[torch.Tensor]):
        """Return ``(args, kwargs)`` with these tensors in place."""
        return pytree.tree_unflatten(_filled(self.leaves, tensors), self.spec)

    def describe(self) -> str:
        """Return text that is the same in every process, for cache keys."""
        return f"{self.spec} {self.leaves} {self.state}"


@dataclass(frozen=True)
class OutputStructure:
    """How the results of a module are put together from flat tensors.

    Arguments
    ---------
    spec : TreeSpec
        Structure of the result.
    leaves : tuple
        For each leaf ``("tensor", index)`` or ``("value", value, type)``.
    dtypes : tuple of torch.dtype
        Types of the flat tensors.
    """

    spec: Any
    leaves: tuple
    dtypes: tuple

    @classmethod
    def of(cls, result) -> tuple["OutputStructure", list[torch.Tensor]]:
        """Return the structure of a result and its tensors, each once."""
        signature, tensors = Signature.of((result,), {})
        leaves = tuple(
            ("tensor", leaf[1]) if leaf[0] == "tensor" else leaf
            for leaf in signature.leaves
        )
        if not tensors:
            raise RuntimeConversionError("it returns no tensor")
        dtypes = tuple(tensor.dtype for tensor in tensors)
        return cls(signature.spec, leaves, dtypes), tensors

    def build(self, tensors: Sequence[torch.Tensor]):
        """Return the result with these tensors in place."""
        values = _filled(self.leaves, tensors)
        args, _ = pytree.tree_unflatten(values, self.spec)
        return args[0]

    def to_dict(self) -> dict:
        """Return plain data, for the cache on disk."""
        if any(
            leaf[0] == "value"
            and isinstance(leaf[1], (torch.dtype, torch.device))
            for leaf in self.leaves
        ):
            raise TypeError("a result is neither a tensor nor plain JSON")
        return {
            "spec": pytree.treespec_dumps(self.spec),
            "leaves": [list(leaf) for leaf in self.leaves],
            "dtypes": [str(d).removeprefix("torch.") for d in self.dtypes],
        }

    @classmethod
    def from_dict(cls, plain: dict) -> "OutputStructure":
        """Undo `to_dict`."""
        return cls(
            pytree.treespec_loads(plain["spec"]),
            tuple(tuple(leaf) for leaf in plain["leaves"]),
            tuple(getattr(torch, name) for name in plain["dtypes"]),
        )


def _filled(leaves: tuple, tensors: Sequence[torch.Tensor]) -> list:
    """Return the values of leaves, with tensors in their places."""
    return [
        tensors[leaf[1]] if leaf[0] == "tensor" else leaf[1] for leaf in leaves
    ]


class FlatModule(nn.Module):
    """A module that takes and returns flat tuples of tensors."""

    def __init__(self, module: nn.Module, signature: Signature):
        super().__init__()
        self.module, self.signature = module, signature
        self.structure = None

    def forward(self, *tensors):
        """Call the module."""
        args, kwargs = self.signature.arguments(tensors)
        self.structure, flat = OutputStructure.of(self.module(*args, **kwargs))
        return tuple(flat)


def trace(module: nn.Module, signature: Signature, tensors):
    """Trace a call of a module with dynamic shapes.

    Arguments
    ---------
    module : torch.nn.Module
        The module, in evaluation mode and lowered for the runtime.
    signature : Signature
        How it is called.
    tensors : list of torch.Tensor
        Example inputs.

    Returns
    -------
    traced : torch.jit.ScriptModule
        Takes and returns flat tensors.
    structure : OutputStructure
        How to put the results together.

    Raises
    ------
    RuntimeConversionError
        If the module cannot be traced.
    """
    flat = FlatModule(module, signature).eval()
    try:
        # check_trace would run the module twice more, with the same shapes;
        # compiled graphs are verified with other shapes instead.
        with torch.no_grad(), traceable(module):
            traced = torch.jit.trace(
                flat, tuple(tensors), check_trace=False, strict=False
            )
    except RuntimeConversionError:
        raise
    except Exception as err:
        reason = str(err).strip().splitlines()[0][:300] if str(err) else ""
        raise RuntimeConversionError(
            f"it cannot be traced: {type(err).__name__}: {reason}"
        ) from err
    return traced, flat.structure


def speaking_names(module: nn.Module, args, kwargs) -> list[str]:
    """Return names for the tensors of a call, from ``forward``'s parameters."""
    forward = type(module).forward
    parameters = list(inspect.signature(forward).parameters)[1:]
    named = [*zip(parameters, args), *kwargs.items()]
    names, seen = [], set()
    for name, value in named:
        tensors = [
            leaf
            for leaf in pytree.tree_leaves(value)
            if isinstance(leaf, torch.Tensor) and id(leaf) not in seen
        ]
        seen.update(map(id, tensors))
        one = len(tensors) == 1
        names += [name if one else f"{name}_{i}" for i in range(len(tensors))]
    return names
