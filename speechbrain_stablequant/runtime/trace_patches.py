"""Patches of functions and methods while a module is traced.

A trace records tensor operations. Whatever Python computes beside them, like a
length turned into a number or the branch taken by an ``if``, is recorded as
the constant that it was for the example, and is wrong for the next input.
Functions that are known to do this are replaced by equal ones that stay within
tensors; conversions that depend on values of the input are refused.
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

# -- what a trace would keep of the example's values --------------------------

# The conversions of tensors to Python numbers. The first three are permitted
# for numbers that depend on the lengths of the input alone: slicing needs
# indices, and attention asks for more than one query and takes the root of its
# size; these stay right, or are found when a result is verified at another
# length. int() and item() on a length are refused: they count, and the graph
# would hold a constant.
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
        Whether a number computed from its lengths counts, too.
    """
    # Walk the graph recorded so far backwards, to the inputs of the trace.
    # Weights (GetAttr) end a path, and so does the size of a tensor unless
    # lengths count.
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
    """Refuse to trace what turns values of the input into numbers or branches.

    The trace would keep the number of the example. Verification compares other
    lengths, not other values, so that nothing would reveal it before an input
    takes the other branch.
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


# -- functions that would bake the example's lengths into the trace -----------


def _length_to_mask(length, max_len=None, dtype=None, device=None):
    """SpeechBrain's `length_to_mask`, without ``.item()`` of a length."""
    longest = length.max().long() if max_len is None else max_len
    positions = torch.arange(longest, device=length.device)
    mask = positions.to(length.dtype).unsqueeze(0) < length.unsqueeze(1)
    return mask.to(dtype or length.dtype)


_layer_norm = F.layer_norm


def _layer_norm_over_all(
    input, normalized_shape, weight=None, bias=None, eps=1e-5
):
    """`layer_norm`, spelled out where it normalizes over time as well.

    Its ``normalized_shape`` then contains the length, which a trace keeps.
    """
    count = len(normalized_shape)
    if weight is not None or bias is not None or count != input.dim() - 1:
        return _layer_norm(input, normalized_shape, weight, bias, eps)
    axes = list(range(1, input.dim()))
    centred = input - input.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / (variance + eps).sqrt()


_setitem = torch.Tensor.__setitem__


def _set_masked(self, index, value):
    """``x[mask] = number`` as ``masked_fill_``.

    Converters translate indexed assignment wrongly.
    """
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
    """Return transformers' mask of frames, computed by comparing positions.

    The original marks the last frame, flips, sums and flips again, which
    converters translate wrongly.
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
    """Make calls of a module traceable with lengths that may change.

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
        # The tracer warns about each constant; they are verified instead.
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _traceable_methods(root: nn.Module) -> Iterator[None]:
    """Replace methods of transformers' models for a trace by equal ones."""
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
    # Modules that did ``from ... import length_to_mask`` hold a reference of
    # their own: it has to be replaced in each of them.
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
