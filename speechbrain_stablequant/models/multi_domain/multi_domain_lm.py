"""A language model for many domains: one frozen trunk, small layers for each.

Lee et al., *Adaptable Multi-Domain Language Model for Transformer ASR*
(arXiv 2008.06208, ICASSP 2021); the places of the adapters and of the layer
norms are those of the companion patent (US 11,967,308).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import torch
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn

from speechbrain_stablequant.errors import StableQuantError, nearest
from speechbrain_stablequant.models.multi_domain import files
from speechbrain_stablequant.models.multi_domain.config import DomainConfig
from speechbrain_stablequant.models.multi_domain.layers import DomainLayers
from speechbrain_stablequant.models.multi_domain.recurrent import RecurrentTrunk
from speechbrain_stablequant.models.multi_domain.routing import Routing
from speechbrain_stablequant.models.multi_domain.transformer import (
    TransformerTrunk,
)
from speechbrain_stablequant.runtime.state import IN_PARTS

__all__ = ["MultiDomainLM"]

Domains = Union[str, Sequence[Optional[str]], None]
_ACTIVE = object()
_TRUNKS = {TransformerLM: TransformerTrunk, RNNLM: RecurrentTrunk}


class MultiDomainLM(nn.Module):
    """A frozen common language model with layers for each domain.

    It takes the place of its trunk everywhere: in a recipe's Brain, in
    ``TransformerLMScorer`` or ``RNNLMScorer``, in the rescorers, in
    `PostTrainingQuantizer`. The domain is chosen by `set_domain`, for a whole
    batch or utterance by utterance.

    Domains that do not occur in a batch get no gradients: with several domains,
    ``DistributedDataParallel`` needs ``find_unused_parameters: True``.

    Arguments
    ---------
    trunk : TransformerLM or RNNLM
        The common model, float or quantized. Its parameters are frozen.
    domains : dict or list, optional
        The domains to begin with; in a dict, each with its options (see
        `DomainConfig`) or None.
    domain : str, list or None
        Passed to `set_domain`.
    config : DomainConfig or dict, optional
        For domains without options of their own.

    Raises
    ------
    StableQuantError
        If the trunk is of another kind, or a name cannot be used.

    Example
    -------
    >>> trunk = TransformerLM(20, d_model=16, nhead=2, num_encoder_layers=2)
    >>> lm = MultiDomainLM(trunk, {"music": {"bottleneck": 4}}, "music").eval()
    >>> lm(torch.randint(1, 20, (3, 7))).shape
    torch.Size([3, 7, 20])
    >>> lm.set_domain(["music", None, "music"])  # None: the common domain
    >>> lm(torch.randint(1, 20, (3, 7))).shape
    torch.Size([3, 7, 20])
    """

    def __init__(
        self,
        trunk: nn.Module,
        domains: Union[Mapping, Sequence[str], None] = None,
        domain: Domains = None,
        config: Union[DomainConfig, Mapping, None] = None,
    ):
        super().__init__()
        self.runner = _runner_of(trunk)
        self.trunk = trunk
        self.trunk.requires_grad_(False)
        self.domains = nn.ModuleDict()
        if not isinstance(domains, Mapping):
            domains = dict.fromkeys(domains or ())
        for name, own in domains.items():
            self.add_domain(name, config if own is None else own)
        self.set_domain(domain)

    # -- which domains there are ------------------------------------------

    def add_domain(self, name: str, config=None) -> DomainLayers:
        """Add a domain. Until it is trained, it computes what the trunk does.

        Arguments
        ---------
        name : str
            Name of the domain: letters, digits, ``_`` and ``-``.
        config : DomainConfig or dict, optional
            Its layers.

        Returns
        -------
        DomainLayers
            The domain's layers.

        Raises
        ------
        StableQuantError
            If there is such a domain already, or the name cannot be used.
        """
        self._check_new(name)
        layers = DomainLayers(DomainConfig.of(config), self.runner.sites)
        return self._install(name, layers)

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise StableQuantError(
                f"{name!r} cannot name a domain: use letters, digits, _ and -."
            )
        if name in self.domains:
            raise StableQuantError(
                f"There is a domain '{name}' already. Remove it first, or "
                "choose another name."
            )
        if hasattr(self.domains, name):
            raise StableQuantError(
                f"'{name}' cannot name a domain: PyTorch uses that name."
            )

    def _install(self, name: str, layers: DomainLayers) -> DomainLayers:
        like = next(self.trunk.parameters())
        layers.to(like.device, like.dtype).train(self.training)
        self.domains[name] = layers
        return layers

    def remove_domain(self, name: str) -> None:
        """Remove a domain; where it was set, the trunk alone is used."""
        self._layers(name)
        del self.domains[name]
        domain = self._domain
        if isinstance(domain, list):
            self._domain = [None if d == name else d for d in domain]
        elif domain == name:
            self._domain = None

    def save_domain(self, name: str, path, plan=None) -> Path:
        """Write all that a domain adds to one file.

        Arguments
        ---------
        name : str
            The domain.
        path : str or Path
            Where to write; an existing file is replaced only at the end.
        plan : QuantizationPlan, optional
            Plan of this model, where layers of the domain are quantized.

        Returns
        -------
        Path
            The path.

        Raises
        ------
        StableQuantError
            If there is no such domain, or quantized layers and no plan.
        """
        layers = self._layers(name)
        return files.save_domain(
            layers, path, name, files.trunk_hash(self.trunk), plan
        )

    def load_domain(
        self,
        path: Union[str, Path],
        name: Optional[str] = None,
        same_trunk: bool = True,
    ) -> str:
        """Add a domain that `save_domain` wrote.

        Arguments
        ---------
        path : str or Path
            The file.
        name : str, optional
            Name of the domain, if not that under which it was saved.
        same_trunk : bool
            Whether to require exactly the trunk that the domain was trained
            on. Pass False for a trunk that was quantized since.

        Returns
        -------
        str
            The name of the domain.

        Raises
        ------
        CheckpointError
            If the file is damaged, or was made for another trunk. Nothing
            is added then.
        StableQuantError
            If there is a domain of that name.
        """
        header = files.read_domain(path)
        name = header.name if name is None else name
        try:
            self._check_new(name)
        except StableQuantError as err:
            raise StableQuantError(f"Cannot add {path}: {err}") from None
        expected = files.trunk_hash(self.trunk) if same_trunk else None
        layers = files.load_domain(header, self.runner.sites, expected)
        self._install(name, layers)
        return name

    # -- the current domain --------------------------------------------------

    @property
    def domain(self) -> Domains:
        """What was set: a name, a list of names, or None for the trunk."""
        return self._domain

    def set_domain(self, domain: Domains) -> None:
        """Choose the domain of the next batches.

        Arguments
        ---------
        domain : str, list or None
            The name of a domain; None for the trunk alone; or a list with one
            of these for each utterance. A searcher does not tell how many
            hypotheses an utterance has: in evaluation mode, two domains for
            four rows mean two utterances of two hypotheses. Do not leave a list
            set for the next batch. In training mode, and as an argument of
            `forward`, a list needs one entry for each row.

        Raises
        ------
        StableQuantError
            If there is no such domain.
        """
        if _is_list(domain):
            domain = list(domain)
        self.layers_of(domain)
        self._domain = domain

    def layers_of(self, domain: Domains) -> list[Optional[DomainLayers]]:
        """Return the layers of one domain or of a list of them.

        Arguments
        ---------
        domain : str, list or None
            As in `set_domain`.

        Returns
        -------
        list of (DomainLayers or None)
            One entry for each name; None for the trunk alone.

        Raises
        ------
        StableQuantError
            If there is no such domain.
        """
        names = domain if _is_list(domain) else [domain]
        return [None if n is None else self._layers(n) for n in names]

    def _layers(self, name: str) -> DomainLayers:
        if name not in self.domains:
            raise StableQuantError(
                f"There is no domain '{name}'."
                + (
                    nearest(name, self.domains)
                    if len(self.domains)
                    else " None was added."
                )
            )
        return self.domains[name]

    # -- execution -----------------------------------------------------------

    def execution_state(self):
        """Return the state on which a compiled graph depends.

        Returns
        -------
        str or None
            The current domain; `IN_PARTS` for a list, because row numbers
            must not become constants of a graph.
        """
        return IN_PARTS if _is_list(self._domain) else self._domain

    def __call__(self, tokens, hx=None, domain: Domains = _ACTIVE):
        """Call `forward`.

        A runtime makes a graph for each set of arguments that are not tensors.
        There is no end of lists of domains, and none can be compiled: such
        calls bypass the compiled graph, and the modules inside run compiled.
        """
        if domain is _ACTIVE:
            return super().__call__(tokens, hx)
        if _is_list(domain) and "forward" in vars(self):
            return type(self).forward(self, tokens, hx, domain)
        return super().__call__(tokens, hx, domain=domain)

    def forward(self, tokens: torch.Tensor, hx=None, domain: Domains = _ACTIVE):
        """Return the logits of the next token at each position.

        Arguments
        ---------
        tokens : torch.Tensor
            (rows, time); for an ``RNNLM`` also (rows,), one step.
        hx : torch.Tensor or tuple, optional
            Hidden states of an ``RNNLM``.
        domain : str, list or None
            As in `set_domain`, for this call only; a list has one domain for
            each row.

        Returns
        -------
        torch.Tensor
            (rows, time, tokens); as the trunk's, also with hidden states.

        Raises
        ------
        StableQuantError
            If a list of domains does not match the number of rows.
        """
        route = self.route(len(tokens), tokens.device, domain)
        state = () if hx is None else (hx,)
        return self.runner(tokens, route, *state)

    def route(
        self, rows: int, device: torch.device, domain: Domains = _ACTIVE
    ) -> Routing:
        """Return which rows of a batch go through which domain."""
        chosen = self._domain if domain is _ACTIVE else domain
        layers = self.layers_of(chosen)
        # Several rows for each utterance occur in SpeechBrain's searchers only,
        # which neither train nor pass a domain.
        alone = self.training or domain is not _ACTIVE
        if alone and _is_list(chosen) and len(layers) != rows:
            raise StableQuantError(
                f"{len(layers)} domains were given for a batch of {rows} rows: "
                "give one domain, or one for each row. Only in evaluation "
                "mode does set_domain take one for several hypotheses."
            )
        return Routing(layers, rows, device)

    def extra_repr(self) -> str:
        """Name the domains."""
        return f"domains: {', '.join(self.domains) or 'none'}"


def _is_list(domain: Domains) -> bool:
    """Return whether each utterance has a domain of its own."""
    return domain is not None and not isinstance(domain, str)


def _runner_of(trunk: nn.Module):
    """Return what runs a trunk with the layers of domains in it."""
    for kind, runner in _TRUNKS.items():
        if isinstance(trunk, kind):
            if type(trunk).forward is not kind.forward:
                raise StableQuantError(
                    f"{type(trunk).__name__} has a forward of its own, which "
                    f"would not be called: use {kind.__name__} as the trunk."
                )
            return runner(trunk)
    raise StableQuantError(
        f"A {type(trunk).__name__} cannot be the trunk of a MultiDomainLM: "
        "expected SpeechBrain's TransformerLM or RNNLM."
    )
