"""Recognition from the posteriors of a CTC model, with a language model.

The posteriors are computed once; any number of language models can then be
fused (`decode`) or rescore lists of hypotheses (`rescore`).
"""

from typing import NamedTuple

import torch
from ctc_search import build_searcher
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.scorer import RescorerBuilder, TransformerLMRescorer
from speechbrain.utils.metric_stats import ErrorRateStats

__all__ = ["Hypothesis", "decode", "greedy", "rescore", "tune", "word_errors"]


class Hypothesis(NamedTuple):
    """A recognised sentence.

    Arguments
    ---------
    text : str
        Its words.
    score : float
        Log-probability, the language model's part and rewards included.
    length : int
        Number of tokens.
    """

    text: str
    score: float
    length: int


@torch.no_grad()
def decode(
    posteriors,
    tokenizer,
    lm=None,
    lm_weight=0.0,
    length_weight=0.0,
    beam_size=8,
    topk=1,
    batch_size=10,
    **options,
):
    """Recognises utterances with beam search.

    Arguments
    ---------
    posteriors : dict
        Log-posteriors by utterance, (frames, tokens).
    tokenizer : SentencePieceProcessor
        Turns tokens into words.
    lm : torch.nn.Module, optional
        Language model to fuse.
    lm_weight : float
        Its weight; the CTC model has 1.
    length_weight : float
        Reward for each token. A language model prefers short sentences.
    beam_size : int
        Number of hypotheses.
    topk : int
        Length of the lists of hypotheses.
    batch_size : int
        Number of utterances that are searched together.
    **options : dict
        Other arguments of `ctc_search.build_searcher`.

    Returns
    -------
    dict
        A list of `Hypothesis` by utterance, the best first.
    """
    if not posteriors:
        return {}
    searcher = build_searcher(
        n_out=next(iter(posteriors.values())).shape[-1],
        lm=lm,
        lm_weight=lm_weight,
        length_weight=length_weight,
        beam_size=beam_size,
        topk=topk,
        **options,
    )
    found = {}
    # Of similar lengths, so that little is searched in vain
    keys = sorted(posteriors, key=lambda key: (len(posteriors[key]), key))
    for start in range(0, len(keys), batch_size):
        some = keys[start : start + batch_size]
        batch, lengths = _pad([posteriors[key] for key in some])
        hyps, relative, scores, _ = searcher(batch, lengths)
        counts = torch.round(relative * hyps.shape[-1]).long()
        for row, key in enumerate(some):
            found[key] = [
                Hypothesis(
                    tokenizer.decode_ids(hyp[:count].tolist()),
                    score.item(),
                    count.item(),
                )
                for hyp, count, score in zip(
                    hyps[row], counts[row], scores[row]
                )
                if score > searcher.minus_inf / 2  # else it fills the list up
            ]
    return {key: found[key] for key in posteriors}


def greedy(posteriors, tokenizer):
    """Recognises utterances by the likeliest token of each frame.

    Arguments
    ---------
    posteriors : dict
        Log-posteriors by utterance, (frames, tokens).
    tokenizer : SentencePieceProcessor
        Turns tokens into words.

    Returns
    -------
    dict
        A list of one `Hypothesis` by utterance.
    """
    found = {}
    for key, frames in posteriors.items():
        (ids,) = ctc_greedy_decode(frames[None], torch.ones(1), blank_id=0)
        score = frames.max(dim=-1).values.sum().item()
        found[key] = [Hypothesis(tokenizer.decode_ids(ids), score, len(ids))]
    return found


def rescore(
    nbest,
    tokenizer,
    lm,
    lm_weight,
    length_weight=0.0,
    batch_size=10,
    bos_index=1,
    eos_index=2,
):
    """Orders lists of hypotheses anew with a language model.

    Arguments
    ---------
    nbest : dict
        What `decode` returned without a language model, with a large ``topk``.
    tokenizer : SentencePieceProcessor
        That of the language model.
    lm : torch.nn.Module
        Language model.
    lm_weight : float
        Its weight; the score of the list has 1.
    length_weight : float
        Reward for each token.
    batch_size : int
        Number of utterances that are rescored together.
    bos_index, eos_index : int
        Special tokens.

    Returns
    -------
    dict
        A list of `Hypothesis` by utterance, the best first.
    """
    lm_rescorer = TransformerLMRescorer(
        language_model=lm,
        tokenizer=tokenizer,
        device=next(lm.parameters()).device,
        bos_index=bos_index,
        eos_index=eos_index,
        pad_index=0,
    )
    rescorer = RescorerBuilder(
        rescorers=[lm_rescorer], weights={"transformerlm": lm_weight}
    )
    found, keys = {}, list(nbest)
    for start in range(0, len(keys), batch_size):
        some = keys[start : start + batch_size]
        # The same words may be there several times, in other pieces
        unique = [
            {hyp.text: hyp for hyp in reversed(nbest[key])} for key in some
        ]
        scores = [
            [hyp.score + length_weight * hyp.length for hyp in hyps.values()]
            for hyps in unique
        ]
        ranked = rescorer.rescore([list(hyps) for hyps in unique], scores)
        for key, hyps, *best in zip(some, unique, *ranked):
            found[key] = [
                Hypothesis(text, score, hyps[text].length)
                for text, score in zip(*best)
            ]
    return found


def word_errors(found, references):
    """Scores what was recognised.

    Arguments
    ---------
    found : dict
        Lists of `Hypothesis` by utterance.
    references : dict
        Sentences by utterance.

    Returns
    -------
    ErrorRateStats
        SpeechBrain's; `speechbrain_stablequant.metrics.metric.items_of` reads the
        utterances out of it.
    """
    stats = ErrorRateStats()
    keys = sorted(references)
    stats.append(
        keys,
        [found[key][0].text.split() for key in keys],
        [references[key].split() for key in keys],
    )
    return stats


def tune(search, references, lm_weights, length_weights=(0.0,)):
    """Chooses the weights with the fewest word errors.

    The weights of the language model are tried with the first reward for
    length, then the other rewards with the best weight: the two hardly
    interact, and a full grid takes several times as long.

    Arguments
    ---------
    search : callable
        Called with ``lm_weight`` and ``length_weight``, returns hypotheses.
    references : dict
        Sentences by utterance.
    lm_weights : list of float
        To try.
    length_weights : list of float
        To try.

    Returns
    -------
    best : dict
        ``lm_weight``, ``length_weight`` and ``WER``; of equals the first.
    tried : list of dict
        The same for all that was tried.
    """
    tried = []

    def attempt(lm_weight, length_weight):
        found = search(lm_weight=lm_weight, length_weight=length_weight)
        wer = word_errors(found, references).summarize("error_rate")
        row = {"lm_weight": lm_weight, "length_weight": length_weight}
        tried.append({**row, "WER": wer})

    for weight in lm_weights:
        attempt(weight, length_weights[0])
    best = min(tried, key=lambda row: row["WER"])["lm_weight"]
    for reward in length_weights[1:]:
        attempt(best, reward)
    return min(tried, key=lambda row: row["WER"]), tried


def _pad(sequences):
    """Returns a batch and relative lengths."""
    batch = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(s) / batch.shape[1] for s in sequences])
    return batch, lengths
