"""How many parameters each domain adds."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.models.multi_domain.multi_domain_lm import (
    MultiDomainLM,
)

__all__ = ["AddedParameters", "added_parameters", "num_parameters"]


class AddedParameters(NamedTuple):
    """The number of parameters that a domain adds to a trunk.

    Arguments
    ---------
    domain : str
        Name of the domain.
    adapters : int
        Parameters of its adapters.
    layer_norms : int
        Parameters of its layer norms.
    related_layers : int
        Parameters of its change to the output projection.
    percent : float
        The total, in percent of the trunk's parameters.
    """

    domain: str
    adapters: int
    layer_norms: int
    related_layers: int
    percent: float

    @property
    def total(self) -> int:
        """All parameters that the domain adds."""
        return self.adapters + self.layer_norms + self.related_layers


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters; an integer weight counts as one.

    Example
    -------
    >>> num_parameters(nn.Linear(3, 2))
    8
    """
    count = sum(p.numel() for p in module.parameters())
    for layer in module.modules():
        if isinstance(layer, QuantizedModule):
            count += sum(
                layer.quantized_weight(name).values.numel()
                for name in layer._weight_schemes
            )
    return count


def added_parameters(lm: MultiDomainLM) -> Iterable[AddedParameters]:
    """Return what each domain of a model adds.

    The example reproduces the figures of the paper, with a model of the size
    that it describes: two percent for the first domain, thirteen for a later
    one.

    Arguments
    ---------
    lm : MultiDomainLM
        The model.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.TransformerLM import (
    ...     TransformerLM,
    ... )
    >>> from speechbrain_stablequant.models.multi_domain import DomainConfig
    >>> lm = MultiDomainLM(
    ...     TransformerLM(8000, 512, 8, 9, 0, 2048),
    ...     {
    ...         "first": DomainConfig.paper(first=True),
    ...         "later": DomainConfig.paper(first=False),
    ...     },
    ... )
    >>> [f"{row.domain} {row.percent:.0f} %" for row in added_parameters(lm)]
    ['first 2 %', 'later 13 %']
    """
    trunk = num_parameters(lm.trunk)
    rows = []
    for name, layers in lm.domains.items():
        output = 0 if layers.output is None else num_parameters(layers.output)
        parts = (
            num_parameters(layers.adapters),
            num_parameters(layers.norms),
            output,
        )
        rows.append(AddedParameters(name, *parts, 100 * sum(parts) / trunk))
    return rows
