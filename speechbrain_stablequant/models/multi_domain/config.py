"""Options of a domain: which layers it adds to the common language model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from speechbrain_stablequant.core.options import (
    build_options,
    check_choice,
    check_flag,
    check_whole_number,
)

__all__ = ["DomainConfig"]

_RELATED_LAYERS = ("none", "low_rank", "full")


@dataclass(frozen=True)
class DomainConfig:
    """Options of the layers of one domain.

    Arguments
    ---------
    bottleneck : int
        Hidden size of the adapters, of which each Transformer layer has two.
    layer_norms : bool
        Whether the domain has its own layer norms.
    related_layers : str
        Its change to the output projection: ``none``, ``low_rank``, or
        ``full``, like the later domains of the paper.
    rank : int
        Rank of a ``low_rank`` output projection.
    output_bias : bool
        Whether the domain has its own bias in the output projection, which is
        enough to model word frequencies. ``full`` includes it.

    Raises
    ------
    KnobError
        If a value is out of range.

    Example
    -------
    >>> DomainConfig.of({"bottleneck": 8, "related_layers": "none"})
    DomainConfig(bottleneck=8, layer_norms=True, related_layers='none', rank=8, output_bias=True)
    """

    bottleneck: int = 12
    layer_norms: bool = True
    related_layers: str = "low_rank"
    rank: int = 8
    output_bias: bool = True

    def __post_init__(self):
        for name in ("bottleneck", "rank"):
            check_whole_number(name, getattr(self, name), 1)
        for name in ("layer_norms", "output_bias"):
            check_flag(name, getattr(self, name))
        check_choice("related_layers", self.related_layers, _RELATED_LAYERS)

    @classmethod
    def of(cls, value: Union["DomainConfig", Mapping, None]) -> "DomainConfig":
        """Return a configuration from options in a YAML file or a header.

        Arguments
        ---------
        value : DomainConfig, dict or None
            None means the defaults.

        Raises
        ------
        KnobError
            If an option is unknown or out of range.
        """
        if isinstance(value, cls):
            return value
        if value is None:
            return cls()
        return build_options(cls, value, "A domain", "{bottleneck: 12}")

    @classmethod
    def paper(cls, first: bool, bottleneck: int = 32) -> "DomainConfig":
        """Return the configuration of the paper (arXiv 2008.06208).

        Arguments
        ---------
        first : bool
            The first domain shares the output projection of the trunk, a
            later one has its own.
        bottleneck : int
            Hidden size of the adapters. The paper does not state it; 32 comes
            nearest to its two percent.
        """
        related = "none" if first else "full"
        return cls(bottleneck, True, related, output_bias=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)
