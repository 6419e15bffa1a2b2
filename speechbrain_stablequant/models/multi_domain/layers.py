"""The layers of a domain: adapters, layer norms, output projection.

Each is stored as a change to a layer of the trunk and initialised with zeros:
a new domain computes what the trunk computes, bit for bit, even if the trunk's
weights are loaded afterwards.
"""

from collections.abc import Mapping
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

from speechbrain_stablequant.models.multi_domain.config import DomainConfig

__all__ = ["BottleneckAdapter", "DomainLayers", "DomainNorm", "Sites"]


class Sites(NamedTuple):
    """The places in a trunk where a domain adds layers.

    Arguments
    ---------
    adapters : dict
        Number of features by name of the adapter.
    norms : dict
        Number of features by name of the layer norm.
    output : tuple of int
        Input features and tokens of the output projection.
    """

    adapters: Mapping[str, int]
    norms: Mapping[str, int]
    output: tuple[int, int]


class BottleneckAdapter(nn.Module):
    """Down-projection, ReLU, up-projection and a residual connection.

    Houlsby et al., ICML 2019. SpeechBrain's ``HoulsbyAdapterLinear`` wraps a
    layer; this one follows a sub-layer, so that each domain can have its own.

    Arguments
    ---------
    features : int
        Size of input and output.
    bottleneck : int
        Hidden size.

    Example
    -------
    >>> adapter, x = BottleneckAdapter(8, 2), torch.randn(3, 5, 8)
    >>> bool((adapter(x) == x).all())
    True
    """

    def __init__(self, features: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(features, bottleneck)
        self.up = nn.Linear(bottleneck, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adapt (..., features)."""
        return x + self.up(F.relu(self.down(x)))


class DomainNorm(nn.Module):
    """A domain's change to the gain and the offset of a layer norm.

    Arguments
    ---------
    features : int
        Number of features.
    """

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        """Normalize (..., features) with the domain's parameters."""
        return F.layer_norm(
            x,
            norm.normalized_shape,
            norm.weight + self.weight,
            norm.bias + self.bias,
            norm.eps,
        )


def _output_layer(features, tokens, config) -> Optional[nn.Module]:
    """Return a domain's change to the output projection, or None."""
    if config.related_layers == "low_rank":
        down = nn.Linear(features, config.rank, bias=False)
        up = nn.Linear(config.rank, tokens, bias=config.output_bias)
        layer = nn.Sequential(down, up)
    elif config.related_layers == "full":
        layer = up = nn.Linear(features, tokens)
    elif config.output_bias:
        return _Bias(tokens)
    else:
        return None
    nn.init.zeros_(up.weight)
    if up.bias is not None:
        nn.init.zeros_(up.bias)
    return layer


class _Bias(nn.Module):
    """A vector that does not depend on the input."""

    def __init__(self, tokens: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, x):
        """Return the vector."""
        return self.bias


class DomainLayers(nn.Module):
    """All layers of one domain.

    Arguments
    ---------
    config : DomainConfig
        Which layers, and their sizes.
    sites : Sites
        Where they go in the trunk.
    """

    def __init__(self, config: DomainConfig, sites: Sites):
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleDict(
            {
                name: BottleneckAdapter(features, config.bottleneck)
                for name, features in sites.adapters.items()
            }
        )
        norms = sites.norms if config.layer_norms else {}
        self.norms = nn.ModuleDict(
            {name: DomainNorm(features) for name, features in norms.items()}
        )
        self.output = _output_layer(*sites.output, config)

    def adapt(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Adapt what a sub-layer of the trunk returned."""
        return self.adapters[name](x)

    def normalize(self, name: str, norm: nn.LayerNorm, x) -> torch.Tensor:
        """Normalize with the domain's layer norm, or with the trunk's."""
        if name not in self.norms:
            return norm(x)
        return self.norms[name](x, norm)

    def project(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the domain."""
        logits = projection(x)
        return logits if self.output is None else logits + self.output(x)
