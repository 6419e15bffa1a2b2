"""Utterances of several domains in one batch, beams included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant import accelerate, quantize
from speechbrain_stablequant.adapters import MultiDomainLM
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.runtime.tracing import inert

from . import models

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
    found = models.logits_of(lm(ids, domain=names))
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
    losses = models.train(lm, domain=["a", "c"])
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
    """The toolkit's model returns an empty batch, and so does this one."""
    lm = MultiDomainLM(models.transformer(), ["a"]).eval()
    for domain in ("a", ["a", None]):
        found = lm(models.tokens()[:0], domain=domain)
        assert found.shape == (0, 9, models.VOCAB)


def test_compiled_graphs_follow_the_domain():
    """A graph of one domain never answers for another, nor for a mixture."""
    lm = models.multi_domain(models.transformer(d_model=32), "a", "b")
    quantize(lm, [models.tokens()], bits="W8", progress=False)
    accelerate(lm, cache_folder=False, precision="f32")
    with torch.no_grad():
        for domain in ("a", "b", None, ["b", "a"], ["a", "b"], "a"):
            lm.set_domain(domain)
            for rows in (4, 2, 6):
                ids = models.tokens(rows, padded=False)
                with inert():
                    expected = lm(ids)
                assert torch.allclose(lm(ids), expected, rtol=0.01, atol=0.01)


def test_a_mixture_is_not_traced():
    lm = models.multi_domain(models.transformer(), "a", "b", domain=["a", "b"])
    with pytest.raises(StableQuantError, match="one domain at a time"):
        torch.jit.trace(lm, models.tokens(), check_trace=False)
