"""A quantized model as the float model that its integers stand for."""

import contextlib
from collections.abc import Iterator

from torch import nn

from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.layers.snapshot import ModuleSnapshot

__all__ = ["in_float"]


@contextlib.contextmanager
def in_float(root: nn.Module) -> Iterator[None]:
    """Give layers their float class while the block runs.

    Weights are those that the integers stand for, inputs are not quantized:
    the architecture of the float model at the float model's speed. What
    conversion has rewritten (weight norm is fused) stays so.

    Arguments
    ---------
    root : torch.nn.Module
        Model with quantized layers; afterwards as it was.

    Example
    -------
    >>> import torch
    >>> from speechbrain_stablequant import quantize
    >>> net = nn.Sequential(nn.Linear(4, 2)).eval()
    >>> _ = quantize(net, [torch.randn(2, 4)], bits="W8A8", progress=False)
    >>> with in_float(net):
    ...     type(net[0]).__name__
    'Linear'
    >>> type(net[0]).__name__
    'QuantizedLinear'
    """
    layers = [m for m in root.modules() if isinstance(m, QuantizedModule)]
    states = [ModuleSnapshot(layer) for layer in layers]
    try:
        for layer in layers:
            _restore(layer)
        yield
    finally:
        for state in states:
            state.apply()


def _restore(layer: QuantizedModule) -> None:
    """Turn one layer into its float class."""
    weights = {n: layer.dequantized(n) for n in layer._weight_schemes}
    for name in layer.conversion_buffers():
        del layer._buffers[name]
    float_class = next(
        c for c in type(layer).__mro__ if not issubclass(c, QuantizedModule)
    )
    layer.__class__ = float_class  # type: ignore[assignment]  # what it was
    own = layer.__dict__
    if "_flat_weights" in own:  # of recurrent layers; a list to change
        own["_flat_weights"] = list(own["_flat_weights"])
    for name, weight in weights.items():
        # Assigned, not registered, so that such a list has it, too.
        setattr(layer, name, nn.Parameter(weight, requires_grad=False))
