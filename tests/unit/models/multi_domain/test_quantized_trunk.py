"""Adapters that learn on integers, and domains that become integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant import QuantizationPlan, quantize
from speechbrain_stablequant.core.numerics import fake_quantize
from speechbrain_stablequant.core.plan import QuantizationScheme
from speechbrain_stablequant.layers import Conversion, QuantizedModule
from speechbrain_stablequant.models.multi_domain import MultiDomainLM
from tests.unit.models.multi_domain import models

BITS = ["W8", "W4", "W2", "W8A8", "W4A4"]


def quantized_trunk(bits, *names, **overrides):
    sizes = {"num_encoder_layers": 1, **overrides}
    lm = models.multi_domain(models.transformer(**sizes), *names)
    batches = [models.tokens(seed=seed) for seed in range(2)]
    quantize(lm.trunk, batches, bits=bits, progress=False)
    return lm


# -- training on integers -------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "pre_norm"), [*((bits, True) for bits in BITS), ("W4A4", False)]
)
def test_a_domain_learns_and_the_integers_stay(bits, pre_norm):
    lm = quantized_trunk(bits, "a", "b", normalize_before=pre_norm)
    ids = models.tokens()
    kept = {"trunk": lm.trunk, "b": lm.domains["b"]}
    before = {name: models.copies(module) for name, module in kept.items()}
    outputs = {name: lm(ids, domain=name) for name in ("a", "b", None)}
    losses = models.train(lm, domain="a")
    assert losses[-1] < 0.9 * losses[0]
    for name, module in kept.items():
        assert models.same_bits(module, before[name]), name
    for name in ("b", None):
        assert torch.equal(lm(ids, domain=name), outputs[name])
    assert not torch.equal(lm(ids, domain="a"), outputs["a"])


@pytest.mark.parametrize("bits", [*BITS, "W1A1"])
def test_lowest_layers_learn_too(bits):
    """The gradient goes through the rounding of all layers above."""
    lm = quantized_trunk(bits, "a")
    lm.set_domain("a")
    before = models.copies(lm.domains["a"])
    lm(models.tokens()).square().mean().backward()
    gradients = {n: p.grad for n, p in lm.domains["a"].named_parameters()}
    assert [n for n, g in gradients.items() if not bool(g.any())] == []
    models.train(lm, steps=3)
    after = lm.domains["a"].state_dict()
    assert [k for k, v in after.items() if torch.equal(v, before[k])] == []


def test_gradients_are_nearly_those_of_the_float_trunk():
    names = "adapters.layer0_attention.down.weight", "norms.layer0_norm1.weight"
    found = []
    for bits in (None, "W8A8"):
        lm = models.multi_domain(models.transformer(), "a", domain="a")
        if bits is not None:
            batches = [models.tokens(seed=seed) for seed in range(8)]
            quantize(lm, batches, bits=bits, keep="domains*", progress=False)
        lm(models.tokens()).square().mean().backward()
        found.append([lm.domains["a"].get_parameter(n).grad for n in names])
    for expected, gradient in zip(*found):
        cosine = torch.cosine_similarity(
            gradient.flatten(), expected.flatten(), dim=0
        )
        assert cosine > 0.98


SCHEMES = {
    "int8": QuantizationScheme(bits=8, granularity="per_tensor"),
    "int4": QuantizationScheme(bits=4, granularity="per_tensor"),
    "uint8": QuantizationScheme(
        bits=8,
        symmetric=False,
        signed=False,
        narrow_range=False,
        granularity="per_tensor",
    ),
    "binary": QuantizationScheme(bits=1, granularity="per_tensor"),
}


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30),
    st.floats(2**-6, 2, width=32),
    st.sampled_from(sorted(SCHEMES)),
)
def test_gradient_changes_no_bit_of_an_activation(values, scale, name):
    scheme = SCHEMES[name]
    scale = torch.tensor(scale)
    zero = torch.tensor(0 if scheme.signed else 100, dtype=torch.int32)
    expected = fake_quantize(torch.tensor(values), scale, zero, scheme)
    x = torch.tensor(values, requires_grad=True)
    found = fake_quantize(x, scale, zero, scheme)
    assert torch.equal(found.detach(), expected)
    with torch.no_grad():
        assert not fake_quantize(x, scale, zero, scheme).requires_grad
    found.sum().backward()
    low, high = (
        (q - zero) * scale for q in (scheme.qmin - 0.5, scheme.qmax + 0.5)
    )
    if scheme.is_binary:
        low, high = -scale, scale
    well_inside = (x > 0.99 * low) & (x < 0.99 * high)
    well_outside = (x < 1.01 * low) | (x > 1.01 * high)
    assert bool((x.grad[well_inside] == 1).all())
    assert bool((x.grad[well_outside] == 0).all())


# -- trunk and domains together -------------------------------------------------------


def test_float_model_comes_back():
    lm = models.multi_domain(models.transformer(), "a", "b", domain="a")
    before, ids = models.copies(lm), models.tokens()
    with torch.no_grad():
        expected = lm(ids)
        result = quantize(lm, [ids], bits="W4A8", progress=False)
        found = lm(ids)
        result.restore()
        assert torch.equal(lm(ids), expected)
    assert not torch.equal(found, expected)
    assert models.same_bits(lm, before)
    frozen = {p.requires_grad for p in lm.trunk.parameters()}
    assert frozen == {False}


@pytest.mark.parametrize("make", [models.transformer, models.recurrent])
def test_domains_of_one_batch_are_all_calibrated(make):
    lm = models.multi_domain(make(), "a", "b", domain=["a", None, "b", "a"])
    ids = models.tokens()
    floats = {n: models.logits_of(lm(ids, domain=n)) for n in ("a", "b", None)}
    batches = [models.tokens(seed=seed, padded=False) for seed in range(6)]
    result = quantize(lm, batches, bits="W8A8", progress=False)
    assert "never reached" not in result.coverage.table()
    assert result.coverage.fraction == 1
    for name, expected in floats.items():
        found = models.logits_of(lm(ids, domain=name))
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_a_domain_that_calibration_did_not_see():
    """Its weights are quantized, its inputs stay float, and the table says so."""
    lm = models.multi_domain(models.transformer(), "seen", "unseen")
    lm.set_domain("seen")
    ids = models.tokens()
    expected = lm(ids, domain="unseen")
    result = quantize(lm, [ids], bits="W8A8", progress=False)
    rows = {row.name: row for row in result.coverage.rows}
    layers = [n for n in result.plan.layers if n.startswith("domains.unseen.")]
    assert len(layers) == 10
    for layer in layers:
        assert not result.plan.layers[layer].inputs
        row = rows[f"{layer}.weight"]
        assert row.status == "quantized"
        assert "input float (calibration never reached it)" in row.detail
        assert isinstance(lm.get_submodule(layer), QuantizedModule)
    seen = [row for name, row in rows.items() if "domains.seen" in name]
    assert not any("never reached" in row.detail for row in seen)
    found = lm(ids, domain="unseen")
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_domains_can_be_kept():
    lm = models.multi_domain(models.transformer(), "a", domain="a")
    before = models.copies(lm.domains["a"])
    result = quantize(lm, bits="W4", keep="domains.*", progress=False)
    assert models.same_bits(lm.domains["a"], before)
    assert not [n for n in result.plan.layers if n.startswith("domains")]


def test_a_plan_serves_the_same_model_again(tmp_path):
    lm = models.multi_domain(models.transformer(), "a", "b", domain="a")
    ids = models.tokens()
    plan = quantize(lm, [ids], bits="W8A8", progress=False).plan
    path = tmp_path / "plan.json"
    plan.save(path)
    other = models.multi_domain(models.transformer(), "a", "b", domain="a")
    Conversion(other).apply_plan(QuantizationPlan.load(path))
    assert torch.equal(other(ids), lm(ids))


def test_mixed_batches_on_integers():
    lm = models.multi_domain(models.transformer(), "a", "b")
    lm.set_domain(["a", "b", None, None])
    quantize(lm, [models.tokens()], bits="W8A8", progress=False)
    ids, names = models.tokens(), ["b", None, "a", "b"]
    found = lm(ids, domain=names)
    for row, name in enumerate(names):
        # 8-bit rounding may go the other way where a sum differs by a bit.
        expected = lm(ids[row : row + 1], domain=name)[0]
        assert (found[row] - expected).norm() < 0.02 * expected.norm()


def test_new_domains_on_a_quantized_trunk_are_the_trunk():
    lm = MultiDomainLM(models.transformer()).eval()
    quantize(lm.trunk, [models.tokens()], bits="W8A8", progress=False)
    lm.add_domain("new")
    ids = models.tokens()
    with torch.no_grad():
        expected = lm.trunk(ids)
        assert torch.equal(lm(ids), expected)
        assert torch.equal(lm(ids, domain="new"), expected)
