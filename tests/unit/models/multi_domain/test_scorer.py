"""The cached scorer gives the scores of SpeechBrain's, step by step."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import (
    CTCScorer,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.models.multi_domain.cache import BeamCache
from speechbrain_stablequant.models.multi_domain.scorer import (
    TransformerLMScorerWithCache,
)
from tests.unit.models.multi_domain.scorer_helpers import (
    DOMAINS,
    VOCAB,
    compare,
    make_domains,
    make_lm,
    permutation,
)

# -- scores --------------------------------------------------------------------


@limits(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    layers=st.integers(1, 3),
    normalize_before=st.booleans(),
    d_embedding=st.sampled_from([None, 12]),
    bos=st.sampled_from([0, 1]),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
    beams=st.integers(1, 4),
    utterances=st.integers(1, 3),
)
def test_any_language_model(
    seed, layers, temperature, bos, beams, utterances, **knobs
):
    torch.manual_seed(seed)
    lm = make_lm(layers, **knobs)
    memory, prefix = compare(lm, 14, utterances, beams, bos, temperature)
    assert memory.cache.tokens.equal(prefix.long())


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize(
    "domain",
    [
        None,
        *DOMAINS,
        ["later", None],
        ["first", "default"],
        ["default", None],
        ["bias", "plain"],
        ["plain", "plain"],
    ],
    ids=str,
)
def test_domains(domain, normalize_before):
    compare(make_domains(domain, normalize_before=normalize_before))


@pytest.mark.parametrize("missing", [["plain"], ["plain", "first"]], ids=str)
def test_many_domains_in_a_batch(missing):
    domains = [None, "default", "bias", *missing, "default"]
    compare(make_domains(domains), utterances=len(domains), steps=6)


def test_long_searches_forget_what_no_hypothesis_needs():
    memory, _ = compare(make_lm(), steps=120, beams=5)
    assert memory.cache.num_entries < 300  # of 600


def test_hypotheses_that_never_meet_are_all_kept():
    lm = make_lm()
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    memory, prefix = cached.reset_mem(torch.zeros(1), None), None
    for tokens in torch.randint(1, VOCAB, (40, 3)):
        scores, memory = cached.score(tokens, memory, None, None)
        expected, prefix = stock.score(tokens, prefix, None, None)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("begin", ["none", "odd", "reset"])
def test_hypotheses_may_come_from_anywhere_and_change_in_number(begin):
    lm = make_domains("default")
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    utterances = {"none": None, "odd": 4, "reset": 3}[begin]
    memory, prefix = None, None
    if utterances:
        memory = cached.reset_mem(torch.zeros(utterances, 1), None)
    rows = 6
    for step, following in enumerate((6, 6, 9, 9, 3, 3, 5, 1, 4, 4, 4)):
        tokens = torch.randint(VOCAB, (rows,)) if step else torch.ones(6).long()
        scores, memory = cached.score(tokens, memory, None, None)
        expected, prefix = stock.score(tokens, prefix, None, None)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        index = torch.randint(rows, (following,))
        memory = cached.permute_mem(memory, index)
        prefix = stock.permute_mem(prefix, index)
        rows = following


def test_beams_may_become_more_within_utterances():
    lm = make_lm()
    cached = TransformerLMScorerWithCache(lm)
    memory = cached.reset_mem(torch.zeros(2, 1), None)
    _, memory = cached.score(torch.ones(2).long(), memory, None, None)
    memory = cached.permute_mem(memory, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert memory.cache.groups == 2
    _, memory = cached.score(torch.arange(6), memory, None, None)
    memory = cached.permute_mem(memory, torch.tensor([3, 4]))
    assert memory.cache.groups == 1


# -- memory --------------------------------------------------------------------


def test_searches_can_be_interleaved_and_branched():
    lm = make_lm()
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    branches = [(cached.reset_mem(torch.zeros(2, 1), None), None)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        pick = torch.randint(len(branches), (1,), generator=generator).item()
        memory, prefix = branches[pick]
        tokens = torch.randint(1, VOCAB, (4,), generator=generator)
        scores, memory = cached.score(tokens, memory, None, None)
        expected, prefix = stock.score(tokens, prefix, None, None)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        index = permutation(2, 2)
        memory = cached.permute_mem(memory, index)
        branches.append((memory, stock.permute_mem(prefix, index)))


def test_a_search_can_begin_with_prefixes():
    lm = make_lm()
    prefix = torch.tensor([[1, 4, 0], [1, 7, 8]])
    tokens = torch.tensor([3, 5])
    scores, memory = TransformerLMScorerWithCache(lm).score(
        tokens, prefix.float(), None, None
    )
    expected, _ = TransformerLMScorer(lm).score(tokens, prefix, None, None)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert memory.cache.tokens[:, :3].equal(prefix)


def test_another_domain_in_the_middle_of_a_search():
    lm = make_domains("default")
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    memory, prefix = cached.reset_mem(torch.zeros(2, 1), None), None
    for domain in ("default", "later", ["later", None], None):
        lm.set_domain(domain)
        for tokens in torch.randint(1, VOCAB, (2, 4)):
            scores, memory = cached.score(tokens, memory, None, None)
            expected, prefix = stock.score(tokens, prefix, None, None)
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert memory.cache.groups == 2


def test_weights_that_change_between_searches():
    lm = make_domains("default")
    compare(lm, 3)
    for parameter in lm.parameters():
        nn.init.normal_(parameter, std=0.2)
    compare(lm, 3)


def test_too_many_positions():
    lm = make_lm(max_length=4)
    with pytest.raises(StableQuantError, match="more than the 4 tokens"):
        compare(lm, 5)


def test_tokens_that_do_not_go_with_the_memory():
    cached = TransformerLMScorerWithCache(make_lm())
    _, memory = cached.score(torch.ones(3).long(), None, None, None)
    with pytest.raises(StableQuantError, match="2 tokens for 3 hypotheses"):
        cached.score(torch.ones(2).long(), memory, None, None)


def test_nothing_is_recorded_for_gradients():
    lm = make_lm()
    cached = TransformerLMScorerWithCache(lm)
    scores, memory = cached.score(torch.ones(2).long(), None, None, None)
    assert not scores.requires_grad
    cache: BeamCache = memory.cache
    for keys, values in cache._entries.layers:
        assert not keys.requires_grad
        assert not values.requires_grad


# -- quantized -----------------------------------------------------------------


def calibration():
    return [torch.randint(1, VOCAB, (4, 9)) for _ in range(4)]


@pytest.mark.parametrize("normalize_before", [True, False])
@pytest.mark.parametrize("bits", ["W8A8", "W4"])
def test_quantized_trunk(bits, normalize_before):
    """Rounding may put an activation on the next level, hence the tolerance."""
    lm = make_lm(normalize_before=normalize_before)
    result = quantize(lm, calibration(), bits=bits, progress=False)
    # SpeechBrain would read the embeddings of a whole prefix anew as well.
    assert isinstance(lm.encoder.layers[0].self_att.att, QuantizedModule)
    compare(lm, atol=1e-4 if bits == "W4" else 0.5)
    for layer in lm.modules():
        assert getattr(layer, "_weight_cache", None) is None
    result.restore()
    compare(lm)


def test_quantized_activations_are_those_of_speechbrain_mostly():
    lm = make_lm(normalize_before=True)
    quantize(lm, calibration(), bits="W8A8", progress=False)
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    memory, prefix, differences = None, None, []
    for tokens in torch.randint(1, VOCAB, (10, 6)):
        scores, memory = cached.score(tokens, memory, None, None)
        expected, prefix = stock.score(tokens, prefix, None, None)
        differences.append((scores - expected).abs())
    assert torch.stack(differences).median() < 1e-5


@pytest.mark.parametrize("domain", ["default", ["later", "first"]], ids=str)
def test_quantized_trunk_and_float_domains(domain):
    lm = make_domains(domain, normalize_before=True)
    quantize(lm.trunk, bits="W4", progress=False)
    compare(lm)


def test_quantized_domains():
    lm = make_domains("default", normalize_before=True)
    lm.set_domain("later")
    quantize(lm, bits="W8", progress=False)
    compare(lm)
    lm.set_domain(["default", None])
    compare(lm)


def test_domains_with_quantized_activations():
    lm = make_domains("default", normalize_before=True)
    quantize(lm, calibration(), bits="W8A8", progress=False)
    adapter = next(iter(lm.domains["default"].adapters.values()))
    assert isinstance(adapter.down, QuantizedModule)
    compare(lm, atol=0.5)
    lm.set_domain(["default", None])
    compare(lm, atol=0.5)


def test_calibration_during_a_search_sees_attention():
    lm = make_lm()

    def search(lm, batch):
        scorer, memory = TransformerLMScorerWithCache(lm), None
        for tokens in batch.t():
            _, memory = scorer.score(tokens, memory, None, None)

    result = quantize(
        lm, calibration(), forward=search, bits="W8A8", progress=False
    )
    assert result.coverage.fraction > 0.9
    name = "encoder.layers.0.self_att.att"
    assert set(result.plan.layers[name].inputs) == {"query", "key", "value"}


# -- language models without a cache -------------------------------------------


def test_other_attention_is_run_as_speechbrain_does(caplog):
    lm = make_lm(attention_type="RoPEMHA")
    cached, stock = TransformerLMScorerWithCache(lm), TransformerLMScorer(lm)
    memory, prefix = cached.reset_mem(torch.zeros(2, 1), None), None
    with caplog.at_level(logging.INFO):
        for tokens in torch.randint(1, VOCAB, (4, 4)):
            scores, memory = cached.score(tokens, memory, None, None)
            expected, prefix = stock.score(tokens, prefix, None, None)
            assert scores.equal(expected)
            memory = cached.permute_mem(memory, permutation(2, 2))
            prefix = memory.clone()
    found = [r for r in caplog.records if "no cache for RoPEMHA" in r.message]
    assert len(found) == 1


def test_a_forward_of_its_own_is_called():
    class Uniform(TransformerLM):
        def forward(self, src):
            return torch.zeros(*src.shape, VOCAB)

    scorer = TransformerLMScorerWithCache(Uniform(VOCAB, 16, 4, 1, 0, 24))
    scores, memory = scorer.score(torch.ones(2).long(), None, None, None)
    assert scores.unique().numel() == 1
    assert torch.is_tensor(memory)


def test_training_mode_has_dropout_as_in_speechbrain():
    scorer = TransformerLMScorerWithCache(make_lm())
    scorer.lm.train()
    _, memory = scorer.score(torch.ones(2).long(), None, None, None)
    assert torch.is_tensor(memory)


# -- real searches -------------------------------------------------------------


def searcher(scorer_class, lm, bos):
    torch.manual_seed(7)
    net = TransformerASR(VOCAB, 10, 16, 4, 1, 1, 24, activation=nn.GELU).eval()
    seq = Linear(input_size=16, n_neurons=VOCAB)
    ctc = Linear(input_size=16, n_neurons=VOCAB)
    builder = ScorerBuilder(
        full_scorers=[scorer_class(lm, 1.15)],
        partial_scorers=[CTCScorer(ctc, blank_index=0, eos_index=2)],
        weights={"transformerlm": 0.6, "ctc": 0.4},
    )
    search = S2STransformerBeamSearcher(
        [net, seq],
        bos_index=bos,
        eos_index=2,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=5,
        topk=3,
        return_topk=True,
        using_eos_threshold=False,
        length_normalization=True,
        scorer=builder,
    )
    return search, torch.randn(3, 14, 16), torch.tensor([1.0, 0.7, 0.9])


@pytest.mark.parametrize(
    "domain", ["trunk", "later", ["default", None, "first"]], ids=str
)
def test_a_beam_search_finds_the_same_hypotheses(domain):
    lm = make_lm() if domain == "trunk" else make_domains(domain)
    found = []
    for kind in (TransformerLMScorerWithCache, TransformerLMScorer):
        search, states, lens = searcher(kind, lm, bos=1)
        with torch.no_grad():
            found.append(search(states, lens))
    (hyps, lens, scores, log_probs), expected = found
    assert hyps.equal(expected[0])
    assert lens.equal(expected[1])
    torch.testing.assert_close(scores, expected[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(log_probs, expected[3], rtol=0, atol=1e-4)
