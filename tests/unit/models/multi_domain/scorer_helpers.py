"""Language models of random weights, and both scorers side by side."""

import torch
from speechbrain.decoders.scorer import TransformerLMScorer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn

from speechbrain_stablequant.models.multi_domain import (
    DomainConfig,
    MultiDomainLM,
)
from speechbrain_stablequant.models.multi_domain.scorer import (
    TransformerLMScorerWithCache,
)

VOCAB = 23
DOMAINS = {
    "default": DomainConfig(bottleneck=3, rank=2),
    "first": DomainConfig.paper(first=True, bottleneck=2),
    "later": DomainConfig.paper(first=False, bottleneck=2),
    "plain": DomainConfig(2, False, "low_rank", 2, False),
    "bias": DomainConfig(2, related_layers="none"),
}


def make_lm(layers=2, **knobs):
    knobs = {"d_ffn": 24, "activation": nn.GELU, **knobs}
    lm = TransformerLM(VOCAB, 16, 4, layers, 0, **knobs).eval()
    for parameter in lm.parameters():  # biases and norms that matter
        nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return lm


def make_domains(domain=None, **knobs):
    lm = MultiDomainLM(make_lm(**knobs), DOMAINS, domain).eval()
    for parameter in lm.domains.parameters():
        nn.init.normal_(parameter, std=0.3)
    return lm


def permutation(utterances, beams):
    """Return for each hypothesis one of the same utterance."""
    first = torch.arange(utterances).unsqueeze(1) * beams
    return (first + torch.randint(beams, (utterances, beams))).flatten()


def compare(lm, steps=12, utterances=2, beams=3, bos=1, temperature=1.0, **at):
    """Drive both scorers as a beam search does; return the memories."""
    cached = TransformerLMScorerWithCache(lm, temperature)
    stock = TransformerLMScorer(lm, temperature)
    memory = cached.reset_mem(torch.zeros(utterances, 5, 4), None)
    prefix = stock.reset_mem(torch.zeros(utterances, 5, 4), None)
    rows = utterances * beams
    tokens = torch.full((rows,), bos)
    for step in range(steps):
        scores, memory = cached.score(tokens, memory, None, None)
        expected, prefix = stock.score(tokens, prefix, None, None)
        assert scores.shape == expected.shape == (rows, VOCAB)
        torch.testing.assert_close(
            scores,
            expected,
            rtol=0,
            atol=at.get("atol", 1e-4),
            equal_nan=True,
            msg=lambda text, step=step: f"Step {step}: {text}",
        )
        index = permutation(utterances, beams)
        memory = cached.permute_mem(memory, index)
        prefix = stock.permute_mem(prefix, index)
        tokens = torch.randint(VOCAB, (rows,))
    return memory, prefix
