"""Utterances of several domains in one batch, beams included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.models.multi_domain import MultiDomainLM
from tests.unit.models.multi_domain import models

NAMES = ("a", "b", "c")
TRUNKS = {"transformer": models.transformer, "rnn": models.recurrent}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=TRUNKS)
def lm(request):
    return models.multi_domain(TRUNKS[request.param](), *NAMES)


def alone(lm, ids, names):
    """Run each row by itself, in its domain."""
    return torch.cat(
        [
            models.logits_of(lm(row[None], domain=name))
            for row, name in zip(ids, names)
        ]
    )


@given(
    st.lists(st.sampled_from([*NAMES, None]), min_size=1, max_size=6),
    st.integers(1, 3),
    st.sampled_from(sorted(TRUNKS)),
)
def test_rows_equal_those_of_single_runs(names, beams, kind):
    lm = models.multi_domain(TRUNKS[kind](), *NAMES)
    ids = models.tokens(beams * len(names), 6)
    lm.set_domain(names)
    found = models.logits_of(lm(ids))
    each = [name for name in names for _ in range(beams)]
    assert torch.allclose(found, alone(lm, ids, each), **CLOSE)


def test_one_domain_in_a_list_is_that_domain(lm):
    ids = models.tokens()
    expected = models.logits_of(lm(ids, domain="b"))
    for names in (["b"], ["b", "b"], ("b", "b", "b", "b"), iter(["b"])):
        lm.set_domain(names)
        assert torch.equal(models.logits_of(lm(ids)), expected)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a"] * 5, []])
def test_rows_that_cannot_be_shared_out(lm, names):
    with pytest.raises(
        StableQuantError, match=f"{len(names)} domains .*4 rows"
    ):
        lm(models.tokens(), domain=names)


def test_fewer_domains_than_rows_are_hypotheses_only_where_they_can_be(lm):
    """A searcher neither trains nor names a domain; others have miscounted."""
    ids = models.tokens()
    lm.set_domain(["a", "b"])
    expected = models.logits_of(lm(ids, domain=["a", "a", "b", "b"]))
    assert torch.equal(models.logits_of(lm(ids)), expected)
    for names in (["a", "b"], ["a"]):
        with pytest.raises(StableQuantError, match="one for each row"):
            lm(ids, domain=names)
        lm.set_domain(names)
        with pytest.raises(StableQuantError, match="one for each row"):
            lm.train()(ids)
        lm.eval()(ids)
    lm.train()(ids, domain=["a", "b", None, "a"])


def test_gradients_flow_to_the_domains_of_the_batch(lm):
    ids = models.tokens()
    loss = models.logits_of(lm(ids, domain=["a", None, "c", "a"])).square()
    loss.mean().backward()
    assert all(p.grad is None for p in lm.trunk.parameters())
    assert all(p.grad is None for p in lm.domains["b"].parameters())
    for name in "ac":
        gradients = [p.grad for p in lm.domains[name].parameters()]
        assert all(bool(g.any()) for g in gradients)


def test_gradients_are_those_of_single_runs(lm):
    ids, names = models.tokens(3), ["b", "a", "b"]
    models.logits_of(lm(ids, domain=names)).square().sum().backward()
    mixed = {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    alone(lm, ids, names).square().sum().backward()
    for name, gradient in mixed.items():
        expected = lm.get_parameter(name).grad
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-3), name


def test_training_two_of_three_in_one_batch(lm):
    before = models.copies(lm.domains["b"]), models.copies(lm.trunk)
    losses = models.train(lm, domain=["a", "c"] * 4)
    assert losses[-1] < losses[0]
    assert models.same_bits(lm.domains["b"], before[0])
    assert models.same_bits(lm.trunk, before[1])


def test_mixed_precision_training(lm):
    """Domains with different layers give results of different types."""
    lm.add_domain("bias", {"related_layers": "none"})
    lm.add_domain("plain", {"related_layers": "none", "output_bias": False})
    names = ["a", "bias", "plain", None]
    with torch.autocast("cpu", torch.bfloat16):
        found = models.logits_of(lm(models.tokens(), domain=names))
        found.float().square().mean().backward()
    expected = models.logits_of(lm(models.tokens(), domain=names))
    assert torch.allclose(found.float(), expected, atol=0.2)
    for name in names[:3]:
        for parameter in lm.domains[name].parameters():
            assert parameter.grad is not None


def test_no_rows():
    """SpeechBrain's model returns an empty batch, and so does this one."""
    lm = MultiDomainLM(models.transformer(), ["a"]).eval()
    for domain in ("a", ["a", None]):
        lm.set_domain(domain)
        found = lm(models.tokens()[:0])
        assert found.shape == (0, 9, models.VOCAB)


def test_a_mixture_is_not_traced():
    lm = models.multi_domain(models.transformer(), "a", "b", domain=["a", "b"])
    with pytest.raises(StableQuantError, match="one domain at a time"):
        torch.jit.trace(lm, models.tokens(), check_trace=False)
