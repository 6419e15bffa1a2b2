"""Label-synchronous beam search over the posteriors of a CTC model.

SpeechBrain's searchers for CTC models fuse n-gram models only. Here one of its
searchers for attention decoders runs without a decoder: what scores a
hypothesis are its CTC probability and a language model, through SpeechBrain's
own scorers (Watanabe et al., IEEE JSTSP 2017, with a CTC weight of one).
"""

import torch
from speechbrain.decoders import CTCScorer, ScorerBuilder, TransformerLMScorer
from speechbrain.decoders.scorer import LengthScorer
from speechbrain.decoders.seq2seq import S2SBeamSearcher

__all__ = ["CTCLabelSearcher", "CTCScorerWithLookahead", "build_searcher"]


class CTCLabelSearcher(S2SBeamSearcher):
    """A beam search in which the scorers do all the work.

    The inputs are log-posteriors, (batch, frames, tokens), and relative
    lengths. A search ends when the open hypotheses are worse than the finished
    ones by a margin. With more tokens their scores hardly rise again: only where
    a token fits several frames equally well.

    Arguments
    ---------
    n_out : int
        Number of tokens, the blank included.
    scorer : ScorerBuilder
        Must have a CTCScorer of weight 1.
    margin : float
        See above, a difference of log-probabilities.
    **kwargs : dict
        Other arguments of ``S2SBeamSearcher``: indices, ``beam_size``, ...
    """

    def __init__(self, n_out, scorer, margin=5.0, **kwargs):
        super().__init__(
            scorer=scorer,
            min_decode_ratio=0.0,
            max_decode_ratio=1.0,
            using_eos_threshold=False,
            length_normalization=False,
            **kwargs,
        )
        if self.ctc_weight != 1.0:
            raise ValueError(
                "CTCLabelSearcher has no decoder: give the CTCScorer the "
                f"weight 1.0 in the ScorerBuilder, not {self.ctc_weight}."
            )
        self.tokens = n_out
        self.margin = margin

    def set_n_out(self):
        """Returns the number of tokens."""
        return self.tokens

    def reset_mem(self, batch_size, device):
        """There is no decoder that could remember anything."""
        return None

    def change_max_decoding_length(self, min_decode_steps, max_decode_steps):
        """A token for each frame, and then the end of the sentence."""
        return min_decode_steps, max_decode_steps + 1

    def init_beam_search_data(self, enc_states, wav_len):
        """Keeps the list of finished hypotheses within reach."""
        data = super().init_beam_search_data(enc_states, wav_len)
        self._finished = data[3]
        return data

    def _attn_weight_step(
        self, inp_tokens, memory, enc_states, enc_lens, attn, log_probs
    ):
        # Where the decoder has no weight the base class hands on the scores
        # of the step before, and they would be counted again
        return torch.zeros_like(log_probs), memory, attn

    def _update_hyps_and_scores_if_eos_token(
        self, inp_tokens, alived_hyps, eos_hyps_and_log_probs_scores, scores
    ):
        # The base class keeps the first that finish, which are the shortest
        is_eos = inp_tokens.eq(self.eos_index)
        for index in is_eos.nonzero().flatten().tolist():
            score = scores[index].clone()
            if score <= self.minus_inf / 2:
                continue  # the recording is too short for it
            finished = eos_hyps_and_log_probs_scores[index // self.beam_size]
            hyp = alived_hyps.alived_seq[index]
            finished.append((hyp, alived_hyps.alived_log_probs[index], score))
            finished.sort(key=lambda entry: entry[2].item(), reverse=True)
            del finished[self.beam_size :]
        return is_eos

    def _check_full_beams(self, hyps):
        # Whether a search is over depends on the scores; see below
        return False

    def _check_end_condition(self, alived_hyps):
        alive = alived_hyps.sequence_scores.view(self.batch_size, -1)
        # A reward for length could still be earned at each step that is left
        steps_left = self.max_decode_steps - alived_hyps.alived_seq.shape[1]
        reward = max(0.0, self.scorer.weights["length"]) * steps_left
        best = (alive.max(dim=1).values + reward + self.margin).tolist()
        return all(
            possible <= self.minus_inf / 2
            or (
                len(finished) >= self.topk
                and finished[self.topk - 1][2].item() >= possible
            )
            for possible, finished in zip(best, self._finished)
        )

    def _fill_alived_hyps_with_eos_token(
        self, alived_hyps, eos_hyps_and_log_probs_scores, scores
    ):
        # Open hypotheses have not paid for their end. The lists are made
        # equally long with copies that no finished hypothesis loses against.
        for finished in eos_hyps_and_log_probs_scores:
            if not finished:
                raise ValueError(
                    "The search has found no hypothesis: are there NaNs in "
                    "the posteriors?"
                )
            hyp, log_probs, score = finished[-1]
            copy = (hyp, log_probs, torch.full_like(score, self.minus_inf))
            finished += [copy] * (self.beam_size - len(finished))
        return eos_hyps_and_log_probs_scores


class CTCScorerWithLookahead(CTCScorer):
    """SpeechBrain's CTCScorer, for a search without a decoder.

    SpeechBrain's scorer adds up all that could follow a hypothesis. Where the
    CTC model is in doubt much could follow, in little pieces, so that wrong
    beginnings push the right one out of the beam, and the search ends with less
    likely sentences than greedy decoding. Here a hypothesis counts with the
    best that each later frame could give, as in A* search. For this it is
    enough to divide the posteriors of a frame by their maximum, and to begin
    with the product of the maxima: what a finished hypothesis gets is the same.

    Most tokens have next to nothing in all frames of a recording, so that only
    those that come closest to the maximum in any frame are scored: time and
    memory grow with their number.

    The ScorerBuilder goes by the beginning of the class name, which has to be
    that of CTCScorer.

    Arguments
    ---------
    ctc_fc : torch.nn.Module
        See CTCScorer.
    blank_index : int
        The index of the blank token.
    eos_index : int
        The index of the end-of-sequence token.
    num_tokens : int, optional
        How many tokens to score for each recording; None: all.
    """

    def __init__(self, ctc_fc, blank_index, eos_index, num_tokens=64):
        super().__init__(ctc_fc, blank_index, eos_index)
        self.num_tokens = num_tokens

    def reset_mem(self, x, enc_lens):
        """Looks ahead and chooses the tokens of each recording.

        Arguments
        ---------
        x : torch.Tensor
            (batch, frames, tokens). What ``ctc_fc`` takes.
        enc_lens : torch.Tensor
            Number of frames of each.
        """
        super().reset_mem(x, enc_lens)
        # (2, frames, batch, tokens); frames that are not there are blank
        best = self.ctc_score.x[0].amax(-1)
        self.ctc_score.x = self.ctc_score.x - best[None, :, :, None]
        self.best_path = best.sum(0)
        self.likely = None
        if self.num_tokens is not None:
            highest = self.ctc_score.x[0].amax(0)
            highest[:, [self.blank_index, self.eos_index]] = float("-inf")
            count = min(self.num_tokens, highest.shape[1])
            self.likely = highest.topk(count, dim=-1).indices

    def score(self, inp_tokens, memory, candidates, attn):
        """Scores the next tokens; see CTCScorer.

        Arguments
        ---------
        inp_tokens : torch.Tensor
            (batch * beam,). The last token of each hypothesis.
        memory : tuple
            What the last call returned, permuted; None at first.
        candidates : torch.Tensor
            Not used.
        attn : torch.Tensor
            Not used.

        Returns
        -------
        scores : torch.Tensor
            (batch * beam, tokens).
        memory : tuple
            For the next call.
        """
        beam_size = len(inp_tokens) // len(self.best_path)
        likely = self.likely
        if likely is not None:
            likely = likely.repeat_interleave(beam_size, dim=0)
        scores, new_memory = super().score(inp_tokens, memory, likely, attn)
        if memory is None:
            best_path = self.best_path.repeat_interleave(beam_size)
            scores = scores + best_path.unsqueeze(1)
        return scores, new_memory


def build_searcher(
    n_out,
    lm=None,
    lm_weight=0.0,
    length_weight=0.0,
    beam_size=8,
    topk=1,
    blank_index=0,
    bos_index=1,
    eos_index=2,
    num_tokens=64,
    lm_scorer=TransformerLMScorer,
):
    """Returns a searcher that fuses a CTC model with a language model.

    Arguments
    ---------
    n_out : int
        Number of tokens.
    lm : torch.nn.Module, optional
        A language model over the tokens of the CTC model.
    lm_weight : float
        Its weight; the CTC model has 1.
    length_weight : float
        Reward for each token.
    beam_size : int
        Number of hypotheses.
    topk : int
        How many hypotheses to return.
    blank_index, bos_index, eos_index : int
        Special tokens.
    num_tokens : int, optional
        Tokens that the CTC model scores for each recording; None: all.
    lm_scorer : type
        SpeechBrain's scorer of the language model, or another of its kind.

    Returns
    -------
    CTCLabelSearcher
        Called with log-posteriors and relative lengths.
    """
    identity = torch.nn.Identity()
    ctc = CTCScorerWithLookahead(identity, blank_index, eos_index, num_tokens)
    scorers, weights = [ctc], {"ctc": 1.0}
    if lm is not None and lm_weight:
        scorers.append(lm_scorer(lm))
        weights["transformerlm"] = lm_weight
    if length_weight:
        scorers.append(LengthScorer(n_out))
        weights["length"] = length_weight
    return CTCLabelSearcher(
        n_out,
        scorer=ScorerBuilder(full_scorers=scorers, weights=weights),
        bos_index=bos_index,
        eos_index=eos_index,
        beam_size=beam_size,
        topk=topk,
        return_topk=True,
    )
