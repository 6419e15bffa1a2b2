"""A domain's layers with as few operations as one step of a search allows.

One token for each of a few hypotheses is so little work that calling layers
counts. While a search lasts weights do not change, so that they can be put
together once.
"""

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.adapters.layers import DomainLayers
from speechbrain_stablequant.layers.linear import QuantizedLinear

__all__ = ["FusedDomain"]


class FusedDomain:
    """Computes what `DomainLayers` does on (rows, 1, features).

    Layers that more than their weights are needed of, because their input is
    quantized, they are compiled or hooks watch them, are called as they are.

    Arguments
    ---------
    domain : DomainLayers
        The domain. Later changes of its weights are not noticed.

    Example
    -------
    >>> from speechbrain_stablequant.adapters.config import DomainConfig
    >>> from speechbrain_stablequant.adapters.layers import Sites
    >>> domain = DomainLayers(DomainConfig(), Sites({"x": 16}, {}, (16, 30)))
    >>> _ = nn.init.normal_(domain.adapters["x"].up.weight)
    >>> x = torch.randn(3, 1, 16)
    >>> y, expected = FusedDomain(domain).adapt("x", x), domain.adapt("x", x)
    >>> torch.allclose(y, expected, atol=1e-5)
    True
    """

    def __init__(self, domain: DomainLayers):
        self._domain = domain
        self._adapters: dict[str, object] = {}
        self._norms: dict[str, object] = {}
        self._project = None

    def adapt(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Adapt what a sub-layer of the trunk returned."""
        adapt = self._adapters.get(name)
        if adapt is None:
            adapt = _fused_adapter(self._domain.adapters[name])
            self._adapters[name] = adapt
        return adapt(x)

    def normalize(self, name: str, norm: nn.LayerNorm, x) -> torch.Tensor:
        """Normalize with the domain's layer norm, or with the trunk's."""
        normalize = self._norms.get(name)
        if normalize is None:
            own = self._domain.norms
            normalize = _fused_norm(own[name], norm) if name in own else norm
            self._norms[name] = normalize
        return normalize(x)

    def project(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the domain."""
        if self._project is None:
            self._project = _fused_projection(self._domain, projection)
        return self._project(x)


def _only_weights(layer: nn.Module) -> bool:
    """Return whether weight and bias are all there is to a linear layer."""
    return (
        isinstance(layer, nn.Linear)
        and type(layer).forward in (nn.Linear.forward, QuantizedLinear.forward)
        and not getattr(layer, "_input_schemes", None)
        and not _watched(layer)
    )


def _watched(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
    )


def _fused_adapter(adapter):
    """Return a function of (rows, 1, features): two matrix products.

    A bottleneck unit that is always one carries the bias of the up-projection,
    so that the product can be added to the input.
    """
    down, up = adapter.down, adapter.up
    if not (_only_weights(down) and _only_weights(up)) or _watched(adapter):
        return adapter
    weight = down.weight
    inner = torch.cat((weight, weight.new_zeros(1, weight.shape[1]))).t()
    ones = torch.cat((down.bias, down.bias.new_ones(1)))
    outer = torch.cat((up.weight, up.bias.unsqueeze(1)), 1).t()

    def adapt(x):
        x = x.squeeze(1)
        hidden = torch.addmm(ones, x, inner).relu_()
        return torch.addmm(x, hidden, outer).unsqueeze(1)

    return adapt


def _fused_norm(own, norm):
    """Return a layer norm with the domain's parameters."""
    weight, bias = norm.weight + own.weight, norm.bias + own.bias
    shape, eps = norm.normalized_shape, norm.eps
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def _fused_projection(domain, projection):
    """Return the output projection as one product, or with a low-rank one."""
    output, linear = domain.output, projection.w
    if output is None:
        return projection
    parts = output if isinstance(output, nn.Sequential) else [output]
    parts = [p for p in parts if isinstance(p, nn.Linear)]
    watched = [projection, output, *parts]
    if (
        any(_watched(module) for module in watched)
        or not all(_only_weights(part) for part in (linear, *parts))
        or projection.max_norm
    ):
        return lambda x: domain.project(projection, x)
    own = (parts[-1] if parts else output).bias
    bias = linear.bias
    if own is not None:
        bias = own if bias is None else bias + own
    if len(parts) < 2:
        weight = linear.weight + parts[0].weight if parts else linear.weight
        return lambda x: F.linear(x, weight, bias)
    weight, down, up = linear.weight, parts[0].weight, parts[1].weight.t()

    def project(x):
        logits = F.linear(x, weight, bias)
        hidden = F.linear(x, down).squeeze(1)
        logits.squeeze(1).addmm_(hidden, up.to(hidden.dtype))  # autocast
        return logits

    return project
