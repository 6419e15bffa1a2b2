"""Domains on compiled graphs: none ever answers for another."""

import pytest
import torch
from speechbrain.decoders.scorer import TransformerLMScorer
from torch import nn

from speechbrain_stablequant import accelerate, quantize
from speechbrain_stablequant.models.multi_domain import (
    TransformerLMScorerWithCache,
)
from speechbrain_stablequant.runtime import decelerate, runtime_report
from speechbrain_stablequant.runtime.tracing import inert
from tests.unit.models.multi_domain import models
from tests.unit.models.multi_domain.scorer_helpers import permutation

RUNTIMES = ("openvino", "onnx")
DOMAINS = ("a", "b", ["b", "a"], None, ["a"], "a")


class Holder(nn.Module):
    """Has a language model somewhere inside, as a Brain's modules have."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm
        self.temperature = 1.15

    def forward(self, ids):
        return models.logits_of(self.lm(ids)) / self.temperature


def holder(make=models.transformer, bits="W8", names=("a", "b"), **sizes):
    if make is models.transformer:
        sizes = {"num_encoder_layers": 1, **sizes}
    lm = models.multi_domain(make(**sizes), *names)
    lm.set_domain((list(names) * 4)[:4])  # calibration reaches every domain
    if bits:
        quantize(lm, [models.tokens()], bits=bits, progress=False)
    lm.set_domain(None)
    return Holder(lm).eval()


def fast(model, runtime="openvino"):
    return accelerate(
        model, runtime=runtime, cache_folder=False, precision="f32"
    )


def units(model):
    return [(u.name, u.failure) for u in runtime_report(model).units]


@torch.no_grad()
def check(call, ids, tolerance=1e-4):
    with inert():
        expected = models.logits_of(call(ids))
    found = models.logits_of(call(ids))
    assert (found - expected).norm() < tolerance * expected.norm()


ENTRIES = {
    "container": lambda model: model,
    "model": lambda model: model.lm,
    "model's forward": lambda model: model.lm.forward,
}


@pytest.mark.parametrize(
    ("runtime", "entry"),
    [*(("openvino", entry) for entry in ENTRIES), ("onnx", "container")],
)
def test_graphs_follow_the_domain(runtime, entry):
    model = holder(d_model=32)
    call = ENTRIES[entry](fast(model, runtime))
    for domain in DOMAINS:
        model.lm.set_domain(domain)
        for rows in (4, 6):
            check(call, models.tokens(rows, padded=False))
    names = [name for name, _ in units(model)]
    assert names.count("" if entry == "container" else "lm") == 3
    assert [f for _, f in units(model) if f] == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantized_activations(runtime):
    """Rounding may put one on the next level, hence the tolerance."""
    model = fast(holder(bits="W8A8"), runtime)
    for domain in DOMAINS:
        model.lm.set_domain(domain)
        check(model, models.tokens(padded=False), 0.05)
    assert runtime_report(model).num_int8 == runtime_report(model).num_planned


def test_the_whole_is_accelerated_and_the_language_model_is_float():
    """Its domain decides about a graph that it is only a part of."""

    class Quantized(Holder):
        def __init__(self, lm):
            super().__init__(lm)
            self.out = nn.Linear(models.VOCAB, 8)

        def forward(self, ids):
            return self.out(super().forward(ids))

    model = Quantized(holder(bits=None).lm).eval()
    quantize(model, bits="W8", keep="lm.*", progress=False)
    fast(model)
    for domain in DOMAINS:
        model.lm.set_domain(domain)
        check(model, models.tokens(padded=False))


def test_recurrent_models():
    model = fast(holder(models.recurrent))
    for domain in DOMAINS:
        model.lm.set_domain(domain)
        check(model, models.tokens(padded=False))


def test_domain_of_one_call():
    model = fast(holder())
    ids = models.tokens(padded=False)
    lists = [["a", "b", None, name] for name in ("a", "b", None)] * 8
    for domain in ("a", "b", None, *lists, "b"):
        check(lambda ids, d=domain: model.lm(ids, domain=d), ids)
    names = [name for name, failure in units(model) if failure is None]
    assert names.count("lm") == 3
    assert [f for _, f in units(model) if f] == []
    # A searcher cannot do this; whoever does gets the right numbers.
    check(lambda ids: model.lm.forward(ids, domain=["a", "b", None, "a"]), ids)


def test_domains_that_come_and_go():
    model = fast(holder())
    lm, ids = model.lm, models.tokens(padded=False)
    lm.set_domain("a")
    check(model, ids)
    lm.remove_domain("a")
    check(model, ids)
    models.shake(lm.add_domain("a"), 7)
    check(model, ids)
    lm.set_domain("a")
    check(model, ids)


# -- searches ------------------------------------------------------------------


def search(model, scorer, domains=(None,), seed=0):
    """Return the scores of a search of two utterances, three beams each."""
    torch.manual_seed(seed)
    memory, scores = scorer.reset_mem(torch.zeros(2, 5, 4), None), []
    tokens = torch.ones(6, dtype=torch.long)
    for domain in domains:
        model.lm.set_domain(domain)
        for _ in range(3):
            step, memory = scorer.score(tokens, memory, None, None)
            scores.append(step)
            memory = scorer.permute_mem(memory, permutation(2, 3))
            tokens = torch.randint(1, models.VOCAB, (6,))
    return torch.stack(scores)


@pytest.mark.parametrize(
    ("runtime", "cls"),
    [
        ("openvino", TransformerLMScorer),
        ("openvino", TransformerLMScorerWithCache),
        ("onnx", TransformerLMScorerWithCache),
    ],
)
def test_scores_of_an_accelerated_model(runtime, cls):
    """There is no cache then, and the scores are those of each domain."""
    model = holder(d_model=32)
    stock = TransformerLMScorer(model.lm)
    domains = ("a", ["a", "b"], None, "b")
    expected = search(model, stock, domains)
    fast(model, runtime)
    found = search(model, cls(model.lm), domains)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_compiled_parts_in_a_cached_search():
    """What lies outside of attention may be compiled; it is called."""
    model = holder(d_model=32)
    domains = ("a", ["a", "b"], None)
    expected = search(model, TransformerLMScorer(model.lm), domains)
    layers = model.lm.trunk.encoder.layers
    for part in (model.lm.domains["a"], layers[0].pos_ffn):
        fast(part)
        found = search(model, TransformerLMScorerWithCache(model.lm), domains)
        assert runtime_report(part).units
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_accelerated_in_the_middle_of_a_search():
    model = holder(d_model=32)
    cached, stock = (
        cls(model.lm)
        for cls in (TransformerLMScorerWithCache, TransformerLMScorer)
    )
    memory = prefix = None
    changes = (lambda: None, lambda: fast(model), lambda: decelerate(model))
    for change, domain in zip(
        changes * 2, ("a", "a", "b", "b", ["a", "b"], None)
    ):
        change()
        model.lm.set_domain(domain)
        for tokens in torch.randint(1, models.VOCAB, (3, 4)):
            scores, memory = cached.score(tokens, memory, None, None)
            with inert():
                expected, prefix = stock.score(tokens, prefix, None, None)
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-3)
