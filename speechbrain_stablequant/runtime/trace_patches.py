"""What stands in for functions and methods while a module is traced.

Each does what the original does, but leaves no length or value of the example
in the trace as a constant.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from speechbrain.dataio.dataio import length_to_mask
from torch import nn

from speechbrain_stablequant.errors import RuntimeConversionError

__all__ = ["traceable"]

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
    """`length_to_mask` of SpeechBrain, without turning lengths into numbers."""
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
