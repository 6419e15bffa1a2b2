"""A domain's layers with as few operations as one step of a search allows.

One token for each of a few hypotheses is so little work that calling layers
counts. While a search lasts weights do not change, so that they can be put
together once.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.layers.linear import QuantizedLinear
from speechbrain_stablequant.models.multi_domain.layers import DomainLayers
from speechbrain_stablequant.models.multi_domain.routing import Routing

__all__ = ["FusedDomain", "FusedMixture"]


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
    >>> from speechbrain_stablequant.models.multi_domain.config import (
    ...     DomainConfig,
    ... )
    >>> from speechbrain_stablequant.models.multi_domain.layers import Sites
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


class _Bottleneck(NamedTuple):
    """Two matrix products with few units in between.

    A unit that is always one carries the bias of the second, so that the
    product can be added to something.

    Arguments
    ---------
    inner : torch.Tensor
        (features, units).
    bias : torch.Tensor
        (units,).
    outer : torch.Tensor
        (units, outputs).
    """

    inner: torch.Tensor
    bias: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def of(cls, down, up) -> "_Bottleneck":
        """Return what two linear layers compute."""
        weight, bias = down.weight, down.bias
        if bias is None:
            bias = weight.new_zeros(len(weight))
        inner, outer = weight.t(), up.weight.t()
        if up.bias is None:
            return cls(inner, bias, outer)
        return cls(
            F.pad(inner, (0, 1)),
            F.pad(bias, (0, 1), value=1.0),
            torch.cat((outer, up.bias.unsqueeze(0))),
        )

    @classmethod
    def stacked(cls, parts: Sequence["_Bottleneck"]) -> "_Bottleneck":
        """Return one for each utterance, all with as many units."""
        units = [len(part.bias) for part in parts]
        missing = [max(units) - mine for mine in units]
        return cls(
            torch.stack(
                [F.pad(p.inner, (0, n)) for p, n in zip(parts, missing)]
            ),
            torch.stack(
                [F.pad(p.bias, (0, n)) for p, n in zip(parts, missing)]
            ).unsqueeze(1),
            torch.stack(
                [F.pad(p.outer, (0, 0, 0, n)) for p, n in zip(parts, missing)]
            ),
        )


def _adapter(adapter) -> Optional[_Bottleneck]:
    """Return an adapter's two products, or None if it has to be called."""
    down, up = adapter.down, adapter.up
    if not (_only_weights(down) and _only_weights(up)) or _watched(adapter):
        return None
    return _Bottleneck.of(down, up)


def _fused_adapter(adapter):
    """Return a function of (rows, 1, features): two matrix products."""
    fused = _adapter(adapter)
    if fused is None:
        return adapter
    inner, bias, outer = fused

    def adapt(x):
        x = x.squeeze(1)
        hidden = torch.addmm(bias, x, inner).relu_()
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


# -- a batch of several domains ------------------------------------------------


class FusedMixture:
    """A `Routing` that has all domains of a batch in the same operations.

    Weights are put in a stack, one for each utterance, so that hypotheses
    need not be sorted by domain. Where that cannot be, or would take a whole
    output projection for each utterance, it goes domain by domain.

    Arguments
    ---------
    domains : sequence
        For each utterance its `DomainLayers`, or None for the trunk alone.
    routing : Routing
        Goes domain by domain.
    """

    def __init__(
        self, domains: Sequence[Optional[DomainLayers]], routing: Routing
    ):
        self._domains = domains
        self._routing = routing
        self._places: dict[str, object] = {}

    def adapt(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapters of a place to (rows, 1, features)."""
        if name not in self._places:
            self._places[name] = _mixed_adapters(self._domains, name)
        adapt = self._places[name]
        return self._routing.adapt(name, x) if adapt is None else adapt(x)

    def normalize(self, name: str, wrapper: nn.Module, x) -> torch.Tensor:
        """Apply the layer norms of a place to (rows, 1, features)."""
        if name not in self._places:
            self._places[name] = _mixed_norms(self._domains, name, wrapper.norm)
        return self._places[name](x)

    def project(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of (rows, 1, features)."""
        if "" not in self._places:
            self._places[""] = _mixed_projections(self._domains, projection)
        project = self._places[""]
        if project is None:
            return self._routing.project(projection, x)
        return project(x)


def _nothing(like: torch.Tensor, outputs: int) -> _Bottleneck:
    """Return what adds nothing to the trunk."""
    return _Bottleneck(
        like.new_zeros(like.shape[1], 1),
        like.new_zeros(1),
        like.new_zeros(1, outputs),
    )


def _mixed_adapters(domains, name):
    """Return a function of (rows, 1, features), or None."""
    adapters = [d and d.adapters[name] for d in domains]
    fused = [a and _adapter(a) for a in adapters]
    if any(a is not None and f is None for a, f in zip(adapters, fused)):
        return None
    like = next(a for a in adapters if a is not None).down.weight
    nothing = _nothing(like, like.shape[1])
    parts = [nothing if f is None else f for f in fused]
    inner, bias, outer = _Bottleneck.stacked(parts)
    count = len(domains)

    def adapt(x):
        shape = x.shape
        x = x.reshape(count, -1, shape[-1])
        hidden = torch.baddbmm(bias, x, inner).relu_()
        return torch.baddbmm(x, hidden, outer).view(shape)

    return adapt


def _mixed_norms(domains, name, norm):
    """Return a function of (rows, 1, features)."""
    own = [d.norms[name] if d and name in d.norms else None for d in domains]
    if all(o is None for o in own):
        return norm
    weight, bias = (
        torch.stack(
            [mine if o is None else mine + getattr(o, part) for o in own]
        ).unsqueeze(1)
        for part, mine in (("weight", norm.weight), ("bias", norm.bias))
    )
    shape, eps, count = norm.normalized_shape, norm.eps, len(domains)

    def normalize(x):
        y = F.layer_norm(x, shape, None, None, eps)
        y = y.view(count, -1, shape[0])
        return torch.addcmul(bias, y, weight).view(x.shape)

    return normalize


def _mixed_projections(domains, projection):
    """Return a function of (rows, 1, features), or None."""
    linear = projection.w
    if not _only_weights(linear) or _watched(projection) or projection.max_norm:
        return None
    parts = [
        _low_rank(None if d is None else d.output, linear) for d in domains
    ]
    if any(part is None for part in parts):
        return None
    inner, ones, outer = _Bottleneck.stacked(parts)
    weight, bias, count = linear.weight, linear.bias, len(domains)

    def project(x):
        logits = F.linear(x, weight, bias)
        hidden = torch.baddbmm(ones, x.reshape(count, -1, x.shape[-1]), inner)
        logits.view(count, -1, logits.shape[-1]).baddbmm_(
            hidden, outer.to(hidden.dtype)
        )
        return logits

    return project


def _low_rank(output, linear) -> Optional[_Bottleneck]:
    """Return a domain's change to the output projection, if it is small."""
    nothing = _nothing(linear.weight, linear.out_features)
    if output is None:
        return nothing
    if _watched(output):
        return None
    if isinstance(output, nn.Sequential):
        return (
            _Bottleneck.of(*output) if all(map(_only_weights, output)) else None
        )
    if isinstance(output, nn.Linear):
        return None
    return _Bottleneck(
        nothing.inner, nothing.bias + 1, output.bias.unsqueeze(0)
    )
