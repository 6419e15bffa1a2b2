"""Domains of SpeechBrain's RNNLM, which goes step by step."""

import pytest
import speechbrain as sb
import torch
from speechbrain.decoders.scorer import RNNLMScorer

from speechbrain_stablequant import quantize
from speechbrain_stablequant.models.multi_domain import MultiDomainLM
from tests.unit.models.multi_domain import models

DOMAINS = ["a", None, "a", "b"]
CELLS = {name: getattr(sb.nnet.RNN, name) for name in ("LSTM", "GRU", "RNN")}


@pytest.fixture(params=CELLS)
def lm(request):
    trunk = models.recurrent(rnn_class=CELLS[request.param])
    return models.multi_domain(trunk, "a", "b", domain=DOMAINS)


def test_step_by_step_is_the_whole_sequence(lm):
    ids = models.tokens(padded=False)
    expected, last = lm(ids)
    hidden, steps = None, []
    for step in ids.unbind(1):
        logits, hidden = lm(step, hx=hidden)
        assert logits.shape == (4, models.VOCAB)
        steps.append(logits)
    assert torch.allclose(torch.stack(steps, 1), expected, atol=1e-5)
    last, hidden = (x if isinstance(x, tuple) else (x,) for x in (last, hidden))
    for a, b in zip(last, hidden):
        assert torch.allclose(a, b, atol=1e-5)


def test_steps_of_the_trunk_alone(lm):
    ids = models.tokens(padded=False)
    hidden, other = None, None
    for step in ids.unbind(1):
        expected, other = lm.trunk(step, hx=other)
        found, hidden = lm(step, hx=hidden, domain=None)
        assert torch.equal(found, expected)


def test_hidden_states_only_where_the_trunk_returns_them():
    trunk = models.recurrent(return_hidden=False)
    lm = MultiDomainLM(trunk, ["a"], "a").eval()
    ids = models.tokens()
    assert torch.equal(lm(ids), trunk(ids))


def test_scorer(lm):
    """SpeechBrain's scorer keeps the hidden states, also between beams."""
    scorer = RNNLMScorer(lm, temperature=1.3)
    ids, memory = models.tokens(padded=False), None
    whole, _ = lm(ids)
    expected = (whole / 1.3).log_softmax(-1)
    for time, step in enumerate(ids.unbind(1)):
        scores, memory = scorer.score(step, memory, None, None)
        assert torch.allclose(scores, expected[:, time], atol=1e-5)


def test_quantized_trunk_learns():
    lm = models.multi_domain(models.recurrent(), "a", "b", domain="a")
    quantize(lm.trunk, bits="W8", progress=False)
    before = models.copies(lm.trunk), models.copies(lm.domains["b"])
    losses = models.train(lm)
    assert losses[-1] < 0.8 * losses[0]
    assert models.same_bits(lm.trunk, before[0])
    assert models.same_bits(lm.domains["b"], before[1])
