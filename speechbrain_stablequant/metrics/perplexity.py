"""Perplexity of language models as a metric that streams and resamples.

SpeechBrain's language-model recipes report a loss averaged over batches, so
that short sentences weigh more than long ones. Here every token weighs the
same, and bits per character compare models with different tokenizers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.metric import (
    Interval,
    Item,
    Metric,
    RateInterval,
)

__all__ = ["PerplexityMetric", "PerplexityStats"]


@dataclass(frozen=True)
class PerplexityMetric(Metric):
    """The exponential of a ratio of sums: nats over tokens.

    Arguments
    ---------
    name : str
        Shown in tables.
    factor : float
        Multiplies the perplexity; leave it at 1.
    unit : str
        Unit of a difference.

    Example
    -------
    >>> metric = PerplexityMetric()
    >>> sure, unsure = Item("a", 0.0, 4), Item("b", 4 * math.log(16), 4)
    >>> round(metric.value([sure, unsure]), 6)
    4.0
    """

    name: str = "PPL"
    factor: float = 1.0
    unit: str = ""

    def value(self, items: Iterable[Item]) -> float:
        """Return the perplexity over some items; nan without tokens."""
        return self.factor * _exp(_NATS.value(items))

    def compare(
        self, before, after, confidence=0.95, samples=2000, seed=1986
    ) -> Interval:
        """Return the change of perplexity with a paired-bootstrap interval."""
        before, after = list(before), list(after)
        # The interval is that of the ratio, which hardly depends on how hard
        # the drawn sentences are, times the perplexity that it starts from.
        change = _NATS.compare(before, after, confidence, samples, seed)
        start = self.value(before)
        low, high = (start * (_exp(x) - 1) for x in (change.low, change.high))
        difference = self.value(after) - start
        return Interval(difference, low, high, confidence)

    def interval(
        self, items, confidence=0.95, samples=2000, seed=1986
    ) -> RateInterval:
        """Return the perplexity of one system with its own interval."""
        found = _NATS.interval(items, confidence, samples, seed)
        ends = (found.value, found.low, found.high)
        value, low, high = (self.factor * _exp(end) for end in ends)
        return RateInterval(value, low, high, confidence)


_NATS = Metric("NLL", factor=1.0, unit="nats per token")
_BITS = Metric("BPC", factor=1.0, unit="bits per character")


def _exp(nats: float) -> float:
    """Return exp, or infinity where it does not fit into a float."""
    return math.exp(nats) if not nats > 700 else math.inf


class PerplexityStats(MetricStats):
    """A class for tracking perplexity and bits per character.

    The end of a sentence counts as a token and as a character (its line
    break), so that probabilities are those of whole lines of text.

    Example
    -------
    >>> stats = PerplexityStats()
    >>> log_probs = torch.full((1, 3, 8), 1 / 8).log()  # three bits a token
    >>> stats.append(["a"], log_probs, torch.tensor([[5, 7, 2]]), ["SO IT IS"])
    >>> round(stats.summarize("PPL"), 4), round(stats.summarize("BPC"), 4)
    (8.0, 1.0)
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Forget all sentences."""
        super().clear()
        self.tokens: list[int] = []
        self.characters: list[int] = []

    def append(self, ids, log_probs, targets, texts, length=None):
        """Store the log-likelihoods of a batch of sentences.

        Arguments
        ---------
        ids : list of str
            Names of the sentences.
        log_probs : torch.Tensor
            Natural logarithms of probabilities, (batch, time, vocabulary).
        targets : torch.Tensor
            Token ids, (batch, time), the end of the sentence included.
        texts : list of str
            The sentences, for their number of characters.
        length : torch.Tensor, optional
            Relative lengths of the targets, (batch,).

        Raises
        ------
        StableQuantError
            If shapes do not fit.
        """
        if log_probs.shape[:2] != targets.shape or len(targets) != len(ids):
            raise StableQuantError(
                f"Log-probabilities of shape {tuple(log_probs.shape)}, targets "
                f"of shape {tuple(targets.shape)} and {len(ids)} ids: expected "
                "(batch, time, vocabulary), (batch, time) and batch."
            )
        if len(texts) != len(ids):
            raise StableQuantError(
                f"{len(texts)} texts for {len(ids)} sentences."
            )
        time = targets.shape[1]
        if length is None:
            length = torch.ones(len(targets), device=targets.device)
        tokens = torch.round(length * time).long().to(targets.device)
        inside = torch.arange(time, device=targets.device) < tokens[:, None]
        nats = -log_probs.float().gather(2, targets.unsqueeze(2)).squeeze(2)
        # where, not a product: a masked log-probability may be infinite
        sums = torch.where(inside, nats.double(), 0.0).sum(1)
        self.ids.extend(ids)
        self.scores.extend(sums.tolist())
        self.tokens.extend(tokens.tolist())
        self.characters.extend(len(text) + 1 for text in texts)
        self.summary = {}

    def summarize(self, field=None):
        """Return statistics over all sentences.

        Arguments
        ---------
        field : str
            If provided, only returns selected statistic. If not,
            returns all computed statistics.

        Returns
        -------
        float or dict
            ``PPL`` (perplexity of a token), ``BPC`` (bits per character),
            ``loss`` (nats per token), ``tokens``, ``characters``.
        """
        nats = math.fsum(self.scores)
        tokens, characters = sum(self.tokens), sum(self.characters)
        if not tokens:
            raise StableQuantError("No sentence was appended.")
        self.summary = {
            "PPL": _exp(nats / tokens),
            "BPC": nats / math.log(2) / characters,
            "loss": nats / tokens,
            "tokens": tokens,
            "characters": characters,
        }
        if field is None:
            return self.summary
        check_choice("Statistic of perplexity", field, self.summary)
        return self.summary[field]

    def write_stats(self, filestream, verbose=False):
        """Write all relevant statistics to file.

        Arguments
        ---------
        filestream : file-like object
            A stream for the stats to be written to.
        verbose : bool
            Whether to also print the stats to stdout.
        """
        summary = self.summarize()
        message = (
            f"Perplexity: {summary['PPL']:.4f} over {summary['tokens']} "
            f"tokens\nBits per character: {summary['BPC']:.4f} over "
            f"{summary['characters']} characters\n"
        )
        filestream.write(message)
        if verbose:
            print(message)

    def quantization_metrics(self) -> dict[str, tuple[Metric, list[Item]]]:
        """Return perplexity and bits per character with their items."""
        keys = [str(key) for key in self.ids]
        nats = np.asarray(self.scores, dtype=np.float64)
        bits = nats / math.log(2)
        perplexity = list(map(Item, keys, nats.tolist(), self.tokens))
        characters = list(map(Item, keys, bits.tolist(), self.characters))
        return {
            "PPL": (PerplexityMetric(), perplexity),
            "BPC": (_BITS, characters),
        }
