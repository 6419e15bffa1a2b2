"""What a layer's inputs are like: the sum of x x^T, collected by hooks.

For a layer y = W x the error of its output is a quadratic form of the error of
W; this sum is its matrix, half the Hessian. For a convolution x is a patch.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.core import distributed
from speechbrain_stablequant.core.numerics import fake_quantize, range_to_scale
from speechbrain_stablequant.core.plan import InputPlan, LayerPlan
from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.layers import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose1d,
    QuantizedLinear,
    QuantizedMultiheadAttention,
    QuantizedRelPosMHAXL,
    QuantizedRoPEMHA,
    kind_of,
    quantized_class,
)

__all__ = ["HessianCollector", "why_no_hessian"]

MAX_NUM_BYTES = 1 << 30  # of the Hessians of one layer

Patches = Iterator[torch.Tensor]


def _linear_patches(module: nn.Module, x: torch.Tensor) -> Patches:
    """Yield the inputs of a matrix product, (1, positions, n)."""
    yield x.reshape(1, -1, x.shape[-1])


def _conv_patches(module: nn.Module, x: torch.Tensor) -> Patches:
    """Yield the patches under a kernel, (groups, positions, n), by sample."""
    spatial = len(module.kernel_size)
    samples = x if x.dim() == spatial + 2 else x[None]
    mode = module.padding_mode
    for sample in samples.split(1):
        sample = F.pad(
            sample,
            module._reversed_padding_repeated_twice,
            mode="constant" if mode == "zeros" else mode,
        )
        columns = _unfold(
            sample, module.kernel_size, module.dilation, module.stride
        )
        yield columns.reshape(module.groups, -1, columns.shape[-1]).mT


def _transposed_conv_patches(module: nn.Module, x: torch.Tensor) -> Patches:
    """Yield what a transposed convolution multiplies, as `_conv_patches`.

    It is a convolution of the input with zeros between its samples, its kernel
    back to front.
    """
    stride, dilation = module.stride[0], module.dilation[0]
    kernel = module.kernel_size[0]
    before = dilation * (kernel - 1) - module.padding[0]
    samples = x if x.dim() == 3 else x[None]
    for sample in samples.split(1):
        channels, frames = sample.shape[1:]
        spread = sample.new_zeros(1, channels, (frames - 1) * stride + 1)
        spread[..., ::stride] = sample
        spread = F.pad(spread, (before, before + module.output_padding[0]))
        columns = _unfold(spread, (kernel,), (dilation,), (1,))
        columns = columns.reshape(channels, kernel, -1).flip(1)
        yield columns.reshape(module.groups, -1, columns.shape[-1]).mT


def _unfold(sample, kernel_size, dilation, stride) -> torch.Tensor:
    """Return (channels x kernel, positions) for one padded sample."""
    if len(kernel_size) == 1:
        sample, kernel_size = sample[:, :, None], (1, *kernel_size)
        dilation, stride = (1, *dilation), (1, *stride)
    return F.unfold(sample, kernel_size, dilation, stride=stride)[0]


_PROJECTED = ("query", "key", "value")
# By quantized class: the inputs that the rows of a weight belong to, in equal
# parts, and what turns an input into what is multiplied with a row.
_INPUTS: dict[type, tuple[dict[str, tuple[str, ...]], Callable]] = {
    QuantizedLinear: ({"weight": ("input",)}, _linear_patches),
    QuantizedConv1d: ({"weight": ("input",)}, _conv_patches),
    QuantizedConv2d: ({"weight": ("input",)}, _conv_patches),
    QuantizedConvTranspose1d: (
        {"weight": ("input",)},
        _transposed_conv_patches,
    ),
    QuantizedMultiheadAttention: (
        {
            "in_proj_weight": _PROJECTED,
            "q_proj_weight": ("query",),
            "k_proj_weight": ("key",),
            "v_proj_weight": ("value",),
        },
        _linear_patches,
    ),
    # In self-attention rows are ordered by head; all then see the same input.
    QuantizedRelPosMHAXL: ({"in_proj_weight": _PROJECTED}, _linear_patches),
    QuantizedRoPEMHA: ({"in_proj_weight": _PROJECTED}, _linear_patches),
}


def _inputs_of(module: nn.Module):
    """Return the entry of `_INPUTS` for a float layer, or None."""
    order = quantized_class(module).__mro__
    return next((_INPUTS[c] for c in order if c in _INPUTS), None)


def why_no_hessian(module: nn.Module) -> Optional[str]:
    """Return why no Hessian is collected for a float layer, or None.

    Arguments
    ---------
    module : torch.nn.Module
        Layer that has a quantized class.

    Example
    -------
    >>> why_no_hessian(nn.Embedding(4, 4))
    'there is no Hessian for Embedding'
    >>> why_no_hessian(nn.Linear(4, 4)) is None
    True
    """
    entry, cls = _inputs_of(module), quantized_class(module)
    if entry is None:
        return f"there is no Hessian for {kind_of(module)}"
    num_bytes = 0
    for name, weight in cls.quantizable_weights(module).items():
        n = cls.to_rows(module, name, weight.detach()).shape[1]
        count = len(entry[0][name]) * getattr(module, "groups", 1)
        num_bytes += 4 * n * n * count
    if num_bytes > MAX_NUM_BYTES:
        return (
            f"its Hessian would take {num_bytes / 2**20:.0f} MiB, over "
            f"{MAX_NUM_BYTES >> 20}"
        )
    return None


class HessianCollector:
    """Collect the Hessians of layers while active.

    A weight of rows of n values takes 4 n^2 bytes, for each group of a
    convolution. A Transformer layer of HuBERT-base takes 47 MiB, of which 36
    are those of its second feed-forward layer (n = 3072); all of HuBERT-base
    takes about 0.6 GiB. Its positional convolution (16 groups, n = 6144) would
    take 2.25 GiB more: over `MAX_NUM_BYTES` a layer has no Hessian.

    Arguments
    ---------
    layers : dict
        Float layer and `LayerPlan` by name, of kinds that have a Hessian (see
        `why_no_hessian`). Inputs are quantized as the plan says.

    Example
    -------
    >>> from speechbrain_stablequant.core.plan import QuantizationScheme
    >>> layer = nn.Linear(2, 1)
    >>> plan = LayerPlan(QuantizationScheme(bits=4))
    >>> with torch.no_grad(), HessianCollector({"": (layer, plan)}) as seen:
    ...     _ = layer(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> seen.hessians("")["weight"].tolist()
    [[[1.0, 2.0], [2.0, 5.0]]]
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Module, LayerPlan]]):
        self._layers = dict(layers)
        # By layer and input, (groups, n, n)
        self._sums: dict[str, dict[str, torch.Tensor]] = {}
        self._hooks = contextlib.ExitStack()
        # Query, key and value projections often see the very same tensor.
        self._last: tuple = (None, None, None)

    def __enter__(self) -> "HessianCollector":
        for name, (module, plan) in self._layers.items():
            hook = self._hook(name, plan)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._hooks.enter_context(handle)
        return self

    def __exit__(self, *exc_info) -> None:
        self._hooks.close()
        self._last = (None, None, None)

    def _hook(self, layer: str, plan: LayerPlan):
        def observe(module, args, kwargs):
            weights, patches = _inputs_of(module)
            cls = quantized_class(module)
            tensors = cls.bind_inputs(args, kwargs)
            used = {
                slot
                for name in cls.quantizable_weights(module)
                for slot in weights[name]
            }
            last, gram = None, None
            for slot in (s for s in cls.input_names if s in used):
                # As attention does: a tensor that comes twice stays the same.
                if tensors[slot] is not last:
                    last, how = tensors[slot], plan.inputs.get(slot)
                    gram = self._gram(module, last, how, patches)
                sums = self._sums.setdefault(layer, {})
                if slot in sums:
                    sums[slot] += gram
                else:
                    sums[slot] = gram.clone()

        return observe

    def _gram(self, module, x, plan: Optional[InputPlan], patches):
        """Return the sum of x x^T over one call's inputs, (groups, n, n)."""
        # A tensor changed in place is another one; inference mode does not say.
        version = None if x.is_inference() else x._version
        shareable = patches is _linear_patches and version is not None
        key = (version, plan)
        if shareable and self._last[0] is x and self._last[1] == key:
            return self._last[2]
        # A sum over many inputs needs float32, whatever the model runs in.
        with torch.autocast(x.device.type, enabled=False):
            real = _as_quantized(x.detach().to(torch.float32), plan)
            gram = sum(patch.mT @ patch for patch in patches(module, real))
        self._last = (x, key, gram) if shareable else (None, None, None)
        return gram

    def merge(self) -> None:
        """Add what other processes have seen; all of them must call it."""
        if distributed.world_size() == 1:
            return
        for name in self._layers:
            mine = self._sums.get(name, {})
            device = next(self._layers[name][0].parameters()).device
            merged: dict[str, torch.Tensor] = {}
            every = distributed.gather({s: h.cpu() for s, h in mine.items()})
            for sums in every:
                for slot, hessian in sums.items():
                    hessian = hessian.to(device)
                    merged[slot] = merged.get(slot, 0) + hessian
            if merged:
                self._sums[name] = merged

    def hessians(self, layer: str) -> Optional[dict[str, torch.Tensor]]:
        """Return the Hessians of a layer's weights; None if never reached.

        Arguments
        ---------
        layer : str
            Name of the layer; its Hessians are forgotten then.

        Returns
        -------
        dict or None
            (parts, n, n) by attribute name: the rows of the weight, in as many
            equal parts, have these Hessians in turn.

        Raises
        ------
        CalibrationError
            If an input was not finite.
        """
        sums = self._sums.pop(layer, None)
        if sums is None:
            return None
        for slot, hessian in sums.items():
            if not bool(torch.isfinite(hessian).all()):
                raise CalibrationError(
                    f"Layer '{layer}', input '{slot}': calibration saw values "
                    "that are not finite, or too large to be squared in "
                    "float32. Add the layer to `keep`, or round to nearest."
                )
        module = self._layers[layer][0]
        weights, _ = _inputs_of(module)
        return {
            name: torch.cat([sums[slot] for slot in weights[name]])
            for name in quantized_class(module).quantizable_weights(module)
        }


def _as_quantized(x: torch.Tensor, plan: Optional[InputPlan]) -> torch.Tensor:
    """Return an input as the quantized layer will see it."""
    if plan is None:
        return x
    scale, zero_point = range_to_scale(
        torch.tensor(plan.low), torch.tensor(plan.high), plan.scheme
    )
    return fake_quantize(
        x, scale.to(x.device), zero_point.to(x.device), plan.scheme
    )
