"""A scorer for beam search that caches the keys and values of prefixes."""

from contextlib import AbstractContextManager
from typing import NamedTuple, Optional

import torch
from speechbrain.decoders.scorer import TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.attention import (
    MultiheadAttention,
    PositionalwiseFeedForward,
)
from speechbrain.utils.logger import get_logger
from torch import nn

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.layers import (
    QuantizedModule,
    QuantizedMultiheadAttention,
)
from speechbrain_stablequant.models.multi_domain.cache import BeamCache
from speechbrain_stablequant.models.multi_domain.multi_domain_lm import (
    MultiDomainLM,
)
from speechbrain_stablequant.models.multi_domain.routing import Routing
from speechbrain_stablequant.models.multi_domain.transformer import (
    TransformerTrunk,
)
from speechbrain_stablequant.runtime.attributes import replaced

__all__ = ["TransformerLMScorerWithCache"]

logger = get_logger(__name__)


class _Start(NamedTuple):
    """Memory of a search before its first step."""

    utterances: int


class _Model:
    """A language model during one search.

    It holds the dequantized weights of one search and is dropped with the
    memory of that search, so that a change of weights between two searches
    cannot meet stale copies.

    Arguments
    ---------
    lm : TransformerLM or MultiDomainLM
        The language model.
    """

    def __init__(self, lm):
        self.domain = _domain(lm)
        if isinstance(lm, MultiDomainLM):
            self.trunk, self._layers = lm.runner, lm.layers_of(self.domain)
        else:
            self.trunk, self._layers = TransformerTrunk(lm), [None]
        self._routes: dict[int, Routing] = {}
        self._weights = [
            (m, {}) for m in lm.modules() if isinstance(m, QuantizedModule)
        ]

    def route(self, tokens: torch.Tensor) -> Routing:
        """Return which domains the rows go through."""
        rows = len(tokens)
        if rows not in self._routes:
            self._routes[rows] = Routing(self._layers, rows, tokens.device)
        return self._routes[rows]

    def kept_weights(self) -> AbstractContextManager:
        """Let quantized layers keep their dequantized weights here."""
        return replaced(
            (layer, "_weight_cache", weights)
            for layer, weights in self._weights
            if layer._weight_cache is None
        )


class _Search(NamedTuple):
    """Memory of a search.

    Arguments
    ---------
    cache : BeamCache
        Its prefixes.
    model : _Model
        What goes on from them.
    """

    cache: BeamCache
    model: _Model


class TransformerLMScorerWithCache(TransformerLMScorer):
    """SpeechBrain's ``TransformerLMScorer``, with cached keys and values.

    At each step SpeechBrain's scorer runs its language model over the whole
    prefix of each hypothesis; this one runs it over the last token. It takes
    the same place in a ``ScorerBuilder``, under the same name of its weight,
    ``transformerlm``, and gives the same scores up to rounding.

    Language models that the cache does not support are run like by SpeechBrain:
    those with attention other than ``regularMHA``, with a ``forward`` of their
    own, compiled by `accelerate`, in training mode, or with hooks on attention.

    Arguments
    ---------
    language_model : TransformerLM or MultiDomainLM
        The language model, float or quantized. The weights of a quantized one
        are dequantized once for each search and not at each step.
    temperature : float
        Temperature of the softmax.

    Example
    -------
    >>> lm = TransformerLM(20, 16, 2, 2, 0, 32).eval()
    >>> scorer = TransformerLMScorerWithCache(lm)
    >>> stock = TransformerLMScorer(lm)
    >>> memory = prefix = None
    >>> for tokens in torch.randint(1, 20, (5, 3)):
    ...     scores, memory = scorer.score(tokens, memory, None, None)
    ...     expected, prefix = stock.score(tokens, prefix, None, None)
    ...     index = torch.randint(3, (3,))
    ...     memory = scorer.permute_mem(memory, index)
    ...     prefix = stock.permute_mem(prefix, index)
    >>> torch.allclose(scores, expected, atol=1e-5)
    True
    """

    def __init__(self, language_model, temperature=1.0):
        super().__init__(language_model, temperature)
        self._logged: Optional[str] = None

    @torch.no_grad()
    def score(self, inp_tokens, memory, candidates, attn):
        """Score the next token of each hypothesis.

        Arguments
        ---------
        inp_tokens : torch.Tensor
            (rows,). The last token of each hypothesis.
        memory : object
            What the last call returned, permuted; at first what `reset_mem`
            returned, or None. Prefixes, (rows, time), are taken as well.
        candidates : torch.Tensor
            Not used.
        attn : torch.Tensor
            Not used.

        Returns
        -------
        log_probs : torch.Tensor
            (rows, tokens).
        memory : object
            For the next call.

        Raises
        ------
        StableQuantError
            If a prefix is longer than the language model has positions for,
            or rows do not go with the memory.
        """
        if not isinstance(memory, _Search):
            reason = self._uncached()
            if reason:
                self._log(reason)
                prefix = memory if torch.is_tensor(memory) else None
                return super().score(inp_tokens, prefix, candidates, attn)
        home = next(self.lm.parameters())
        # As SpeechBrain does, but only where needed: `to` goes through all
        # modules, which takes as long as some layers.
        if not home.is_cuda and home.device != inp_tokens.device:
            self.lm.to(inp_tokens.device)
        cache, model = self._search(inp_tokens, memory)
        logits, cache = _step(model, cache, inp_tokens)
        log_probs = self.softmax(logits / self.temperature)
        return log_probs.squeeze(1), _Search(cache, model)

    def permute_mem(self, memory, index):
        """Select the hypotheses that the search continues with.

        Arguments
        ---------
        memory : object
            What `score` returned.
        index : torch.Tensor
            (rows,). For each hypothesis the one that it extends.

        Returns
        -------
        object
            For the next call of `score`.
        """
        if isinstance(memory, _Search):
            return memory._replace(cache=memory.cache.permuted(index))
        return super().permute_mem(memory, index)

    def reset_mem(self, x, enc_lens):
        """Begin a search.

        Arguments
        ---------
        x : torch.Tensor
            (utterances, ...). Only their number is used: hypotheses of one
            utterance share their common past.
        enc_lens : torch.Tensor
            Not used.

        Returns
        -------
        object
            For the first call of `score`.
        """
        return None if x is None else _Start(len(x))

    def _search(self, tokens, memory) -> _Search:
        """Return the memory of a search that can be continued by ``tokens``.

        Begun anew, with the whole prefix read again, at the first step and
        where the domain was changed in the middle of a search.
        """
        groups = rows = len(tokens)
        prefix = memory
        if isinstance(memory, _Search):
            groups, prefix = memory.cache.groups, memory.cache.tokens
            if len(prefix) != rows:
                raise StableQuantError(
                    f"{rows} tokens for {len(prefix)} hypotheses: permute the "
                    "memory to as many first."
                )
            if memory.model.domain == _domain(self.lm):
                return memory
        elif isinstance(memory, _Start) and rows % memory.utterances == 0:
            groups = memory.utterances
        model, cache = _Model(self.lm), BeamCache(groups, rows, tokens.device)
        if torch.is_tensor(prefix):
            for column in prefix.to(tokens.dtype).unbind(1):
                _, cache = _step(model, cache, column)
        return _Search(cache, model)

    # -- where there is no cache ---------------------------------------------

    def _uncached(self) -> Optional[str]:
        """Return why there is no cache for this language model, or None."""
        lm, modules = self.lm, []
        if isinstance(lm, MultiDomainLM):
            lm, modules = lm.trunk, [lm]
        if type(lm).forward is not TransformerLM.forward:
            return f"{type(lm).__name__} has a forward of its own"
        if type(lm).make_masks is not TransformerLM.make_masks:
            return f"{type(lm).__name__} has masks of its own"
        if lm.training:
            return "it is in training mode"
        try:
            layers = TransformerTrunk(lm).lm.encoder.layers
        except StableQuantError as err:
            return str(err)
        for layer in layers:
            reason = _unsupported(layer)
            if reason:
                return reason
            modules += [layer, layer.self_att, layer.self_att.att]
        for module in (*modules, lm, lm.encoder, lm.positional_encoding):
            if "forward" in module.__dict__:
                return f"its {type(module).__name__} is compiled"
            if module._forward_hooks or module._forward_pre_hooks:
                return f"there are hooks on its {type(module).__name__}"
        return None

    def _log(self, reason: str) -> None:
        if reason != self._logged:
            logger.info(
                "The language model reads the whole prefix at each step, as "
                "with SpeechBrain's scorer: %s.",
                reason,
            )
        self._logged = reason


def _domain(lm):
    """Return what a language model is set to; None without domains."""
    return lm.domain if isinstance(lm, MultiDomainLM) else None


def _step(model, cache, tokens):
    """Return (rows, 1, tokens) logits, and the cache with ``tokens`` in it."""
    trunk, position = model.trunk, cache.tokens.shape[1]
    table = trunk.lm.positional_encoding.pe
    if position >= table.shape[1]:
        raise StableQuantError(
            f"A hypothesis has more than the {table.shape[1]} tokens that the "
            "language model has positions for: set a lower max_decode_ratio, "
            "or a larger max_length of TransformerLM."
        )
    cache = cache.extended(tokens)

    def attend(index, attention, x):
        att = attention.att
        query, key, value = _project(att, x.squeeze(1))
        out = cache.attend(index, att.num_heads, query, key, value)
        return att.out_proj(out).unsqueeze(1)

    with model.kept_weights():
        x = trunk.embed(tokens.unsqueeze(1)) + table[:, position]
        return trunk.run(x, model.route(tokens), attend), cache


def _unsupported(layer) -> Optional[str]:
    """Return why a layer has to see the whole prefix, or None."""
    if type(layer.self_att) is not MultiheadAttention:
        return f"there is no cache for {type(layer.self_att).__name__}"
    if not isinstance(layer.pos_ffn, PositionalwiseFeedForward):
        return "its feed-forward layers look at several positions"
    att = layer.self_att.att
    if not isinstance(att, nn.MultiheadAttention):
        return f"there is no cache for {type(att).__name__}"
    if not att._qkv_same_embed_dim:
        return "keys or values of its attention have a size of their own"
    return QuantizedMultiheadAttention.unsupported(att)


def _project(att, x) -> list[torch.Tensor]:
    """Return query, key and value of (rows, features)."""
    if getattr(att, "_input_schemes", None):
        inputs = [att.quantize_input(name, x) for name in att.input_names]
        return att._project(*inputs)
    out = nn.functional.linear(x, att.in_proj_weight, att.in_proj_bias)
    return out.chunk(3, -1)
