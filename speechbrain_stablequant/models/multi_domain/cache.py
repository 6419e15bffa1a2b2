"""A key-value cache for beam search that stores common prefixes once."""

import math
from typing import Optional

import torch

__all__ = ["BeamCache"]

# Steps for which a new search allocates memory, and the least number of steps
# between two rounds of dropping entries.
_STEPS = 8


class _Entries:
    """Keys and values of the tokens of all hypotheses, in order of arrival.

    An entry is one token of one hypothesis. It is written once and never
    changed, so that caches can share entries. Of several that continue a common
    past, one appends and the others copy (see `BeamCache.extended`).

    Arguments
    ---------
    groups : int
        Number of utterances.
    capacity : int
        Number of entries for which each has memory.
    device : torch.device
        Where they are.
    """

    def __init__(self, groups: int, capacity: int, device: torch.device):
        self.capacity = capacity
        self.used = 0
        self.padding = torch.zeros(
            groups, capacity, dtype=torch.bool, device=device
        )
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def append(self, tokens: torch.Tensor) -> None:
        """Append an entry for each of (groups, hypotheses) tokens.

        SpeechBrain's Transformer masks token 0 as padding, wherever it occurs.
        """
        end = self.used + tokens.shape[1]
        self.padding[:, self.used : end] = tokens == 0
        self.used = end

    def write(self, layer: int, key, value):
        """Store a layer's keys and values for the entries appended last.

        Arguments
        ---------
        layer : int
            Index of the layer.
        key, value : torch.Tensor
            (groups, heads, hypotheses, features of a head).

        Returns
        -------
        keys, values : torch.Tensor
            Of all entries, (groups * heads, entries, features of a head).
        """
        groups, heads, count, width = key.shape
        if layer == len(self.layers):
            shape = (groups, heads, self.capacity, width)
            self.layers.append((key.new_empty(shape), value.new_empty(shape)))
        views = []
        for buffer, new in zip(self.layers[layer], (key, value)):
            buffer[:, :, self.used - count : self.used] = new
            views.append(buffer.flatten(0, 1)[:, : self.used])
        return views

    def selected(self, index: torch.Tensor, capacity: int) -> "_Entries":
        """Return copies of the entries at (groups, count) positions."""
        groups, count = index.shape
        new = _Entries(groups, capacity, index.device)
        new.padding[:, :count] = self.padding.gather(1, index)
        new.used = count
        if not self.layers:
            return new
        heads = self.layers[0][0].shape[1]
        first = torch.arange(groups * heads, device=index.device)
        first = first.view(groups, heads, 1) * self.capacity
        rows = (first + index.unsqueeze(1)).flatten()
        for layer in self.layers:
            pair = []
            for old in layer:
                buffer = old.new_empty(groups, heads, capacity, old.shape[3])
                chosen = old.flatten(0, 2).index_select(0, rows)
                buffer[:, :, :count] = chosen.view(groups, heads, count, -1)
                pair.append(buffer)
            new.layers.append(tuple(pair))
        return new

    def merged(self) -> "_Entries":
        """Return the entries of all groups as those of one."""
        groups = len(self.padding)
        new = _Entries(1, groups * self.used, self.padding.device)
        new.padding[:] = self.padding[:, : self.used].reshape(1, -1)
        new.used = new.capacity
        for layer in self.layers:
            parts = [x[:, :, : self.used].transpose(0, 1) for x in layer]
            new.layers.append(tuple(x.flatten(1, 2)[None] for x in parts))
        return new


class BeamCache:
    """The prefixes of a beam search, with their keys and values.

    The hypotheses of an utterance have most of their past in common. Keys and
    values of a token are stored once, as an entry, and a mask for each
    hypothesis says which entries belong to it. Permuting hypotheses permutes
    masks and copies no keys, and one matrix product attends for all hypotheses
    of an utterance. Entries that no hypothesis needs any more are dropped when
    memory runs out.

    A cache is immutable: like a tensor of tokens, it can be kept, permuted and
    extended more than once.

    Arguments
    ---------
    groups : int
        Number of utterances; their hypotheses come one after the other.
    rows : int
        Number of hypotheses of all of them.
    device : torch.device
        Where they are.

    Example
    -------
    >>> cache = BeamCache(1, 2, torch.device("cpu"))
    >>> cache = cache.extended(torch.tensor([5, 6]))
    >>> q, k, v = torch.randn(3, 2, 8)
    >>> bool((cache.attend(0, 4, q, k, v) == v).all())  # nothing else yet
    True
    >>> cache = cache.permuted(torch.tensor([1, 1]))
    >>> cache.extended(torch.tensor([7, 8])).tokens
    tensor([[6, 7],
            [6, 8]])
    """

    def __init__(self, groups: int, rows: int, device: torch.device):
        beams = rows // groups
        self.tokens = torch.empty(rows, 0, dtype=torch.long, device=device)
        self._own = torch.empty(groups, beams, 0, dtype=bool, device=device)
        self._entries = _Entries(groups, beams * _STEPS, device)
        self._bias: Optional[torch.Tensor] = None

    def _with(self, tokens, own, entries) -> "BeamCache":
        new = object.__new__(BeamCache)
        new.tokens, new._own, new._entries = tokens, own, entries
        new._bias = None
        return new

    @property
    def groups(self) -> int:
        """Number of utterances whose hypotheses share entries."""
        return len(self._own)

    @property
    def num_entries(self) -> int:
        """Tokens of an utterance whose keys and values are kept."""
        return self._own.shape[2]

    def permuted(self, index: torch.Tensor) -> "BeamCache":
        """Return the cache of other hypotheses.

        Arguments
        ---------
        index : torch.Tensor
            (rows,). For each new hypothesis the one that it extends. If that
            is one of another utterance, all utterances are treated as one from
            now on, which is correct, but slower.

        Returns
        -------
        BeamCache
            With as many rows as there are indices.
        """
        tokens = self.tokens.index_select(0, index)
        groups, beams, count = self._own.shape
        own = self._own.flatten(0, 1).index_select(0, index)
        home = index // beams
        if len(index) % groups == 0:
            wanted = torch.arange(groups, device=index.device)
            wanted = wanted.repeat_interleave(len(index) // groups)
            if torch.equal(home, wanted):
                own = own.view(groups, -1, count)
                return self._with(tokens, own, self._entries)
        everywhere = own.new_zeros(len(index), groups, count)
        everywhere[torch.arange(len(index), device=index.device), home] = own
        own = everywhere.flatten(1).unsqueeze(0)
        return self._with(tokens, own, self._entries.merged())

    def extended(self, tokens: torch.Tensor) -> "BeamCache":
        """Return the cache with one more token for each hypothesis.

        Arguments
        ---------
        tokens : torch.Tensor
            (rows,).

        Returns
        -------
        BeamCache
            To `attend` with, once for each layer.
        """
        groups, beams, count = self._own.shape
        own, entries = self._own, self._entries
        # Another cache has already appended behind this one's past (the search
        # has branched), or memory is full: copy what is needed.
        if entries.used > count or count + beams > entries.capacity:
            own, entries = self._tidied()
        entries.append(tokens.view(groups, beams))
        mine = torch.eye(beams, dtype=torch.bool, device=own.device)
        own = torch.cat((own, mine.expand(groups, -1, -1)), -1)
        tokens = torch.cat((self.tokens, tokens.unsqueeze(1)), 1)
        return self._with(tokens, own, entries)

    def _tidied(self):
        """Return masks and copies of the entries that are still needed."""
        groups, beams, _ = self._own.shape
        # Utterances need different numbers of entries, but share one tensor:
        # needed ones are sorted to the front, and cut where the longest ends.
        needed = self._own.any(1)
        count = int(needed.sum(1).max())
        index = needed.byte().argsort(dim=1, descending=True, stable=True)
        index = index[:, :count]
        own = self._own.gather(2, index.unsqueeze(1).expand(-1, beams, -1))
        capacity = count + max(count, _STEPS * beams)
        return own, self._entries.selected(index, capacity)

    def attend(self, layer: int, heads: int, query, key, value):
        """Attend from the last tokens to the prefixes that they end.

        Arguments
        ---------
        layer : int
            Index of the layer; layers come in order.
        heads : int
            Number of heads.
        query, key, value : torch.Tensor
            (rows, features), projected.

        Returns
        -------
        torch.Tensor
            (rows, features), heads joined.
        """
        groups, beams, _ = self._own.shape
        query, key, value = (
            x.view(groups, beams, heads, -1).transpose(1, 2)
            for x in (query, key, value)
        )
        keys, values = self._entries.write(layer, key, value)
        if self._bias is None:
            self._bias = self._mask(heads, query.dtype)
        # Masked by adding -inf: a hypothesis without anything to attend to
        # (all padding) then gives NaN, as in SpeechBrain.
        weights = torch.baddbmm(
            self._bias,
            query.flatten(0, 1),
            keys.transpose(1, 2),
            alpha=1 / math.sqrt(query.shape[-1]),
        ).softmax(-1)
        out = torch.bmm(weights.to(values.dtype), values)
        out = out.view(groups, heads, beams, -1)
        return out.transpose(1, 2).reshape(groups * beams, -1)

    def _mask(self, heads, dtype):
        """Return what to add to scores, (groups * heads, beams, entries)."""
        groups, beams, count = self._own.shape
        padding = self._entries.padding[:, None, :count]
        bias = torch.zeros(self._own.shape, dtype=dtype, device=padding.device)
        bias.masked_fill_(~self._own | padding, -math.inf)
        bias = bias.unsqueeze(1).expand(-1, heads, -1, -1)
        return bias.reshape(groups * heads, beams, count)
