"""Calls of a module as flat lists of tensors, and their trace."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.dataio.dataio import length_to_mask
from torch import nn
from torch.utils import _pytree as pytree

from speechbrain_stablequant.errors import RuntimeConversionError

__all__ = [
    "FlatModule",
    "OutputStructure",
    "Signature",
    "inert",
    "is_inert",
    "trace",
    "traceable",
]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_STATE = threading.local()


@contextlib.contextmanager
def inert() -> Iterator[None]:
    """Make accelerated modules of this thread run as plain torch modules."""
    before = is_inert()
    _STATE.inert = True
    try:
        yield
    finally:
        _STATE.inert = before


def is_inert() -> bool:
    """Return whether accelerated modules are to run as plain ones."""
    return getattr(_STATE, "inert", False) or torch.jit.is_tracing()


@dataclass(frozen=True)
class Signature:
    """One way of calling a module: everything but the tensors' contents.

    Two calls with the same signature can share a compiled model. The same
    tensor given twice stays the same one: attention tells self-attention by
    identity.

    Arguments
    ---------
    spec : TreeSpec
        Structure of ``(args, kwargs)``.
    leaves : tuple
        For each leaf ``("tensor", index, dtype, dimensions)`` or
        ``("value", value, type)``.
    """

    spec: Any
    leaves: tuple

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
                # The type, too, because 1 == 1.0 == True.
                leaves.append(("value", value, type(value).__name__))
            else:
                raise RuntimeConversionError(
                    f"an argument is a {type(value).__name__}, neither a "
                    "tensor nor plain data"
                )
        return cls(spec, tuple(leaves)), tensors

    def __hash__(self):
        return hash((str(self.spec), self.leaves))

    def arguments(self, tensors: Sequence[torch.Tensor]):
        """Return ``(args, kwargs)`` with these tensors in place."""
        values = [
            tensors[leaf[1]] if leaf[0] == "tensor" else leaf[1]
            for leaf in self.leaves
        ]
        return pytree.tree_unflatten(values, self.spec)

    def describe(self) -> str:
        """Return text that is the same in every process."""
        return f"{self.spec} {self.leaves}"


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
        values = [
            tensors[leaf[1]] if leaf[0] == "tensor" else leaf[1]
            for leaf in self.leaves
        ]
        args, _ = pytree.tree_unflatten(values, self.spec)
        return args[0]

    def to_dict(self) -> dict:
        """Return plain data, for the cache on disk."""
        if any(
            leaf[0] == "value"
            and isinstance(leaf[1], (torch.dtype, torch.device))
            for leaf in self.leaves
        ):
            raise TypeError("a result that is neither tensor nor JSON")
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


# -- what a trace would keep of the example's values ---------------------------------

# Slices make indices of lengths, and attention asks whether there is more than
# one query and takes the root of its width; whoever calls int() on a length
# means to count, and would find a constant in the graph.
_FROM_LENGTHS = ("__bool__", "__index__", "__float__")
_CONVERSIONS = (*_FROM_LENGTHS, "__int__", "item")
_TO_PYTHON = {name: getattr(torch.Tensor, name) for name in _CONVERSIONS}


def _depends_on_input(tensor: torch.Tensor, lengths: bool) -> bool:
    """Return whether a tensor is computed from the input's values.

    Arguments
    ---------
    tensor : torch.Tensor
        A tensor in a trace.
    lengths : bool
        Whether its lengths count, too.
    """
    ends = ("prim::GetAttr",) if lengths else ("aten::size", "prim::GetAttr")
    todo, seen = [torch._C._get_value_trace(tensor)], set()
    while todo:
        node = todo.pop().node()
        if node in seen or node.kind() in ends:
            continue
        if node.kind() == "prim::Param":
            return True
        seen.add(node)
        todo.extend(node.inputs())
    return False


@contextlib.contextmanager
def _no_decisions_by_value() -> Iterator[None]:
    """Refuse to trace what turns the input into numbers or branches.

    The trace would hold them fast, and no comparison of results would show it
    before the day on which the other branch is due.
    """

    def checked(name):
        convert = _TO_PYTHON[name]

        def method(self):
            lengths = name not in _FROM_LENGTHS
            if torch.jit.is_tracing() and _depends_on_input(self, lengths):
                raise RuntimeConversionError(
                    "it cannot be traced: its control flow, or a number in "
                    "it, depends on the input"
                )
            return convert(self)

        return method

    for name in _CONVERSIONS:
        setattr(torch.Tensor, name, checked(name))
    try:
        yield
    finally:
        for name, convert in _TO_PYTHON.items():
            setattr(torch.Tensor, name, convert)


# -- functions that would bake the example's lengths into the trace ----------------


def _length_to_mask(length, max_len=None, dtype=None, device=None):
    """`length_to_mask` of the toolkit, without turning lengths into numbers."""
    longest = length.max().long() if max_len is None else max_len
    positions = torch.arange(longest, device=length.device)
    mask = positions.to(length.dtype).unsqueeze(0) < length.unsqueeze(1)
    return mask.to(dtype or length.dtype)


_layer_norm = F.layer_norm


def _layer_norm_over_all(
    input, normalized_shape, weight=None, bias=None, eps=1e-5
):
    """`layer_norm` over all but the batch, where lengths may change."""
    count = len(normalized_shape)
    if weight is not None or bias is not None or count != input.dim() - 1:
        return _layer_norm(input, normalized_shape, weight, bias, eps)
    axes = list(range(1, input.dim()))
    centred = input - input.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / (variance + eps).sqrt()


_setitem = torch.Tensor.__setitem__


def _set_masked(self, index, value):
    """Assign a number where a mask says so; converters misread the original."""
    if (
        isinstance(index, torch.Tensor)
        and index.dtype == torch.bool
        and index.dim() == self.dim()
        and isinstance(value, (int, float))
    ):
        self.masked_fill_(index, value)
    else:
        _setitem(self, index, value)


def _feature_mask(module):
    """Return transformers' mask of frames, as a comparison of positions.

    The original marks the last frame and sums backwards, which converters
    get wrong.
    """

    def mask(feature_vector_length, attention_mask, **kwargs):
        samples = attention_mask.to(torch.long).sum(-1)
        lengths = module._get_feat_extract_output_lengths(samples, **kwargs)
        positions = torch.arange(
            feature_vector_length, device=attention_mask.device
        )
        return positions.unsqueeze(0) < lengths.to(torch.long).unsqueeze(1)

    return mask


@contextlib.contextmanager
def traceable(root: nn.Module) -> Iterator[None]:
    """Let a tracer see a module's calls with lengths that may change.

    Arguments
    ---------
    root : torch.nn.Module
        What is traced.
    """
    with (
        warnings.catch_warnings(),
        _traceable_functions(),
        _traceable_methods(root),
        _no_decisions_by_value(),
    ):
        warnings.simplefilter("ignore")  # what is baked in is verified
        yield


@contextlib.contextmanager
def _traceable_methods(root: nn.Module) -> Iterator[None]:
    """Replace methods of modules for a trace by equal ones."""
    name = "_get_feature_vector_attention_mask"
    changed = [m for m in root.modules() if hasattr(type(m), name)]
    try:
        for module in changed:
            module.__dict__[name] = _feature_mask(module)
        yield
    finally:
        for module in changed:
            module.__dict__.pop(name, None)


@contextlib.contextmanager
def _traceable_functions() -> Iterator[None]:
    """Replace functions for a trace by equal ones that keep shapes dynamic."""
    changed = []
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "speechbrain" and (
            vars(module).get("length_to_mask") is length_to_mask
        ):
            changed.append(module)
    for module in changed:
        module.length_to_mask = _length_to_mask
    F.layer_norm = _layer_norm_over_all
    torch.Tensor.__setitem__ = _set_masked
    try:
        yield
    finally:
        torch.Tensor.__setitem__ = _setitem
        F.layer_norm = _layer_norm
        for module in changed:
            module.length_to_mask = length_to_mask
