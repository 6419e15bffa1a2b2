"""A SpeechBrain inference interface for published language models."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from speechbrain.inference.interfaces import Pretrained

from speechbrain_stablequant.errors import StableQuantError

__all__ = ["LanguageModel", "SentenceScore"]


class SentenceScore(NamedTuple):
    """The score of a sentence.

    Arguments
    ---------
    nats : float
        Negative log probability of its tokens and of its end.
    num_tokens : int
        Number of its tokens, including the end of the sentence.
    """

    nats: float
    num_tokens: int


class LanguageModel(Pretrained):
    """A ready-to-use language model, of one domain or of many.

    SpeechBrain has no such interface. The YAML needs the module ``lm``, a
    ``tokenizer`` and, where they are not 1 and 2, ``bos_index`` and
    ``eos_index``.

    Arguments
    ---------
    *args : tuple
    **kwargs : dict
        Arguments are forwarded to ``Pretrained``.

    Example
    -------
    >>> lm = LanguageModel.from_hparams(
    ...     source="user/lm-banking", savedir="lm"
    ... )  # doctest: +SKIP
    >>> lm.set_domain("banking")  # doctest: +SKIP
    >>> lm.perplexity(["what is the balance"])  # doctest: +SKIP
    17.3
    """

    HPARAMS_NEEDED = ["tokenizer"]
    MODULES_NEEDED = ["lm"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokenizer = self.hparams.tokenizer
        self.bos_index = getattr(self.hparams, "bos_index", 1)
        self.eos_index = getattr(self.hparams, "eos_index", 2)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, if the model has any."""
        return list(getattr(self.mods.lm, "domains", {}))

    def set_domain(self, domain) -> None:
        """Choose a domain, a list of one for each sentence, or None.

        Raises
        ------
        StableQuantError
            If the model has no domains, or none of that name.
        """
        if not hasattr(self.mods.lm, "set_domain"):
            raise StableQuantError("This language model has no domains.")
        self.mods.lm.set_domain(domain)

    def score_sentences(self, sentences: Sequence[str]) -> list[SentenceScore]:
        """Return how probable sentences are.

        Arguments
        ---------
        sentences : sequence of str
            Texts, as the model was trained on them (case, punctuation).

        Returns
        -------
        list of SentenceScore
        """
        return [self._score(sentence) for sentence in sentences]

    def _score(self, sentence: str) -> SentenceScore:
        tokens = self.tokenizer.encode_as_ids(sentence)
        read = torch.tensor([[self.bos_index, *tokens]], device=self.device)
        said = torch.tensor([[*tokens, self.eos_index]], device=self.device)
        with torch.no_grad():
            logits = self.mods.lm(read)
        if isinstance(logits, tuple):  # RNNLM returns its state too
            logits = logits[0]
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        found = log_probs.gather(-1, said.unsqueeze(-1))
        return SentenceScore(-float(found.sum()), said.shape[1])

    def perplexity(self, sentences: Sequence[str]) -> float:
        """Return the perplexity over all tokens of some sentences.

        Raises
        ------
        StableQuantError
            If there are no sentences.
        """
        scores = self.score_sentences(sentences)
        if not scores:
            raise StableQuantError("There are no sentences to score.")
        nats = sum(score.nats for score in scores)
        return math.exp(nats / sum(score.num_tokens for score in scores))
