"""Routing: which rows of a batch go through the layers of which domain."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from torch import nn

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.models.multi_domain.layers import DomainLayers

__all__ = ["Routing"]


class Routing:
    """Sends the rows of a batch through the layers of their domains.

    Arguments
    ---------
    domains : sequence
        For each utterance its `DomainLayers`, or None for the trunk alone.
        A single entry is for all rows.
    rows : int
        Number of rows, a multiple of the number of utterances: a beam search
        has several hypotheses for each, one after the other.
    device : torch.device
        Where the rows are.

    Raises
    ------
    StableQuantError
        If the number of rows is not a multiple of the number of domains.
    """

    def __init__(
        self,
        domains: Sequence[Optional[DomainLayers]],
        rows: int,
        device: torch.device,
    ):
        if len(domains) == 0 or rows % len(domains):
            raise StableQuantError(
                f"{len(domains)} domains were set for a batch of {rows} rows. "
                "Set one domain, or one for each utterance."
            )
        beams = rows // len(domains)
        members: dict[Optional[DomainLayers], list[int]] = {}
        for index, domain in enumerate(domains):
            mine = range(index * beams, (index + 1) * beams)
            members.setdefault(domain, []).extend(mine)
        self._groups = [
            (domain, torch.tensor(rows, dtype=torch.long, device=device))
            for domain, rows in members.items()
        ]
        if len(members) > 1:
            if torch.jit.is_tracing():
                # The row numbers would become constants of the graph.
                raise StableQuantError(
                    "A batch of several domains cannot be traced: trace one "
                    "domain at a time."
                )
            order = torch.cat([index for _, index in self._groups])
            self._back = torch.argsort(order)

    def _run(self, x, with_domain: Callable, alone: Callable) -> torch.Tensor:
        """Apply ``with_domain(domain, rows)``, or ``alone(rows)`` without."""

        def run(domain, part):
            return alone(part) if domain is None else with_domain(domain, part)

        if len(self._groups) == 1:
            return run(self._groups[0][0], x)
        parts = [run(domain, x[index]) for domain, index in self._groups]
        return torch.cat(parts)[self._back]

    def adapt(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Apply the domains' adapters to what a sub-layer returned.

        Arguments
        ---------
        name : str
            Name of the adapter, see `Sites`.
        x : torch.Tensor
            (rows, ...).
        """
        return self._run(
            x, lambda domain, part: domain.adapt(name, part), lambda part: part
        )

    def normalize(self, name: str, wrapper: nn.Module, x) -> torch.Tensor:
        """Apply a layer norm as the domains have it.

        Arguments
        ---------
        name : str
            Name of the layer norm, see `Sites`.
        wrapper : torch.nn.Module
            SpeechBrain's ``LayerNorm`` of the trunk.
        x : torch.Tensor
            (rows, ..., features).
        """
        return self._run(
            x,
            lambda domain, part: domain.normalize(name, wrapper.norm, part),
            wrapper,
        )

    def project(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Apply the output projection of the trunk and of the domains.

        Arguments
        ---------
        projection : torch.nn.Module
            Output projection of the trunk.
        x : torch.Tensor
            (rows, ..., features).

        Returns
        -------
        torch.Tensor
            Logits, (rows, ..., tokens).
        """
        return self._run(
            x,
            lambda domain, part: domain.project(projection, part),
            projection,
        )
