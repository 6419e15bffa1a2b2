"""Domains come, learn and go; the trunk and the others do not notice."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.RNN import GRU

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.models.multi_domain import (
    DomainConfig,
    MultiDomainLM,
)
from tests.unit.models.multi_domain import models

TRUNKS = {
    "pre-norm": lambda: models.transformer(),
    "post-norm": lambda: models.transformer(normalize_before=False),
    "relu": lambda: models.transformer(activation=torch.nn.ReLU),
    "embedding": lambda: models.transformer(d_embedding=10),
    "rotary": lambda: models.transformer(attention_type="RoPEMHA"),
    "rnn": lambda: models.recurrent(),
    "no-blocks": lambda: models.recurrent(dnn_blocks=0, dnn_neurons=20),
    "gru": lambda: models.recurrent(rnn_class=GRU, dnn_blocks=1),
}
CONFIGS = {
    "default": DomainConfig(),
    "adapters": DomainConfig(4, False, "none", output_bias=False),
    "bias": DomainConfig(4, related_layers="none"),
    "full": DomainConfig(4, related_layers="full"),
    "low-rank": DomainConfig(4, rank=2, output_bias=False),
}


@pytest.fixture(params=TRUNKS)
def trunk(request):
    return TRUNKS[request.param]()


def equal(a, b):
    return torch.equal(models.logits_of(a), models.logits_of(b))


# -- the trunk alone -----------------------------------------------------------


def test_trunk_alone_is_its_own_forward(trunk):
    lm = MultiDomainLM(trunk).eval()
    ids = models.tokens()
    assert equal(lm(ids), trunk(ids))
    with torch.no_grad():
        assert equal(lm(ids), trunk(ids))


def test_trunk_alone_in_training(trunk):
    """The same dropout, drawn in the same order."""
    lm = MultiDomainLM(trunk).train()
    ids = models.tokens()
    torch.manual_seed(3)
    expected = trunk(ids)
    torch.manual_seed(3)
    assert equal(lm(ids), expected)
    assert not equal(lm(ids), expected)


@given(rows=st.integers(1, 4), time=st.integers(1, 12), seed=st.integers(0, 99))
def test_trunk_alone_for_any_shape(rows, time, seed):
    trunk = models.transformer(seed)
    lm = MultiDomainLM(trunk).eval()
    ids = models.tokens(rows, time, seed)
    assert equal(lm(ids), trunk(ids))


# -- a domain that was not trained ----------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_new_domain_is_the_trunk(trunk, config):
    ids = models.tokens()
    lm = MultiDomainLM(trunk, {"new": CONFIGS[config]}, "new").eval()
    with torch.no_grad():
        assert equal(lm(ids), trunk(ids))


def test_weights_of_the_trunk_may_come_later():
    """A recipe makes the model first and loads the trunk's checkpoint then."""
    lm = MultiDomainLM(models.transformer(0), ["new"], "new").eval()
    other = models.transformer(1).requires_grad_(False)
    lm.trunk.load_state_dict(other.state_dict())
    ids = models.tokens()
    with torch.no_grad():
        assert equal(lm(ids), other(ids))


# -- training ----------------------------------------------------------------------


def test_training_a_domain_leaves_all_else_alone(trunk):
    lm = models.multi_domain(trunk, "a", "b", "c", domain="b")
    ids = models.tokens()
    kept = {"trunk": lm.trunk, "a": lm.domains["a"], "c": lm.domains["c"]}
    before = {name: models.copies(module) for name, module in kept.items()}
    outputs = {name: lm(ids, domain=name) for name in ("a", "b", "c", None)}
    losses = models.train(lm)
    assert losses[-1] < 0.8 * losses[0]
    for name, module in kept.items():
        assert models.same_bits(module, before[name]), name
    for name in ("a", "c", None):
        assert equal(lm(ids, domain=name), outputs[name])
    assert not equal(lm(ids, domain="b"), outputs["b"])


def test_every_layer_of_a_domain_learns(trunk):
    lm = MultiDomainLM(trunk, ["a"], "a")
    before = models.copies(lm.domains["a"])
    models.train(lm)
    after = lm.domains["a"].state_dict()
    assert [k for k, v in after.items() if torch.equal(v, before[k])] == []


@pytest.mark.parametrize("config", CONFIGS)
def test_every_kind_of_domain_learns(config):
    lm = MultiDomainLM(models.transformer(), {"a": CONFIGS[config]}, "a")
    losses = models.train(lm)
    assert losses[-1] < 0.9 * losses[0]


def test_trunk_does_not_ask_for_gradients(trunk):
    trunk.requires_grad_(True)
    lm = MultiDomainLM(trunk, ["a"])
    trainable = {n for n, p in lm.named_parameters() if p.requires_grad}
    assert trainable == {f"domains.a.{n}" for n in lm.domains["a"].state_dict()}


def test_a_domain_learns_on_after_another(trunk):
    """One optimizer for all, its momentum included, one domain at a time."""
    lm = models.multi_domain(trunk, "a", "b")
    optimizer = torch.optim.AdamW(lm.parameters(), 0.01, weight_decay=0.1)
    before = models.copies(lm.domains["a"])
    for name in ("a", "b", "b"):
        models.logits_of(lm(models.tokens(), domain=name)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if name == "a":
            assert not models.same_bits(lm.domains["a"], before)
            before = models.copies(lm.domains["a"])
    assert models.same_bits(lm.domains["a"], before)


# -- adding, removing, switching -----------------------------------------------------


def test_adding_and_removing_touches_nothing_else(trunk):
    lm = models.multi_domain(trunk, "a", domain="a")
    ids = models.tokens()
    state, output = models.copies(lm), lm(ids)
    lm.add_domain("b", {"bottleneck": 3})
    assert lm.domain == "a"
    assert equal(lm(ids), output)
    assert not lm.domains["b"].training
    lm.remove_domain("b")
    assert models.same_bits(lm, state)


def test_domains_are_independent_of_their_order(trunk):
    one = models.multi_domain(copy.deepcopy(trunk), "a", "b")
    other = MultiDomainLM(trunk, ["b", "a"]).eval()
    for name in "ab":
        state = one.domains[name].state_dict()
        other.domains[name].load_state_dict(state)
    ids = models.tokens()
    for name in "ab":
        assert equal(one(ids, domain=name), other(ids, domain=name))


def test_switching(trunk):
    lm = models.multi_domain(trunk, "a", "b")
    ids = models.tokens()
    outputs = {name: lm(ids, domain=name) for name in ("a", "b", None)}
    assert (
        len(
            {
                tuple(models.logits_of(y)[0, 0].tolist())
                for y in outputs.values()
            }
        )
        == 3
    )
    for name in ("b", None, "a", "b"):
        lm.set_domain(name)
        assert lm.domain == name
        assert equal(lm(ids), outputs[name])


def test_domain_of_one_call(trunk):
    lm = models.multi_domain(trunk, "a", "b", domain="a")
    ids = models.tokens()
    expected = lm(ids)
    lm(ids, domain="b")
    assert lm.domain == "a"
    assert equal(lm(ids), expected)
    assert equal(lm(ids, domain=None), trunk(ids))
    assert equal(lm.forward(ids), expected)


def test_removing_the_domain_that_is_set(trunk):
    lm = models.multi_domain(trunk, "a", "b", domain="a")
    ids = models.tokens()
    lm.remove_domain("a")
    assert lm.domain is None
    assert equal(lm(ids), trunk(ids))
    lm.set_domain(["b", None, "b", None])
    lm.remove_domain("b")
    assert lm.domain == [None] * 4
    assert equal(lm(ids), trunk(ids))


# -- copies and checkpoints ---------------------------------------------------------------


def test_deepcopy_shares_nothing(trunk):
    lm = models.multi_domain(trunk, "a", domain="a")
    twin, ids = copy.deepcopy(lm), models.tokens()
    expected = lm(ids)
    assert equal(twin(ids), expected)
    models.shake(twin)
    twin.set_domain(None)
    assert equal(lm(ids), expected)
    assert not equal(twin(ids), trunk(ids))


def test_state_dict_through_a_file_without_pickle(trunk):
    lm = models.multi_domain(trunk, "a", "b", domain="a")
    file = io.BytesIO()
    torch.save(lm.state_dict(), file)
    file.seek(0)
    other = MultiDomainLM(copy.deepcopy(trunk), ["a", "b"], "a").eval()
    models.shake(other)
    other.load_state_dict(torch.load(file, weights_only=True))
    ids = models.tokens()
    for name in ("a", "b", None):
        assert equal(other(ids, domain=name), lm(ids, domain=name))


def test_domains_go_where_the_trunk_goes(trunk):
    lm = MultiDomainLM(trunk, ["a"]).to(torch.float64)
    lm.add_domain("b")
    lm.to("meta")
    lm.add_domain("c")
    assert {p.dtype for p in lm.parameters()} == {torch.float64}
    assert {p.device.type for p in lm.parameters()} == {"meta"}


def test_half_precision():
    """Of the recurrent model: SpeechBrain's masks are float32."""
    lm = models.multi_domain(models.recurrent(), "a", domain="a")
    ids = models.tokens()
    expected = lm(ids)[0]
    found = lm.bfloat16()(ids)[0]
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.1)


# -- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "a b", "a.b", "../a", "a/b", None, 3, "ä!"]
)
def test_names_that_cannot_be(name):
    with pytest.raises(StableQuantError, match="letters, digits"):
        MultiDomainLM(models.transformer()).add_domain(name)


@pytest.mark.parametrize("name", ["keys", "forward", "training", "pop"])
def test_names_that_pytorch_needs(name):
    lm = MultiDomainLM(models.transformer())
    with pytest.raises(StableQuantError, match="PyTorch uses that name"):
        lm.add_domain(name)
    assert len(lm.domains) == 0


@pytest.mark.parametrize("name", ["a", "0", "_", "-", "Music-2", "musiikki_ä"])
def test_names_that_can_be(name):
    lm = MultiDomainLM(models.transformer(), [name], name).eval()
    assert lm(models.tokens()).shape == (4, 9, models.VOCAB)


def test_a_name_that_is_taken():
    lm = MultiDomainLM(models.transformer(), ["a"])
    with pytest.raises(StableQuantError, match="Remove it first"):
        lm.add_domain("a")


def test_unknown_domains_name_the_nearest():
    lm = MultiDomainLM(models.transformer(), ["music", "weather"], "music")
    ids = models.tokens()
    for call in (
        lambda: lm.set_domain("musik"),
        lambda: lm.set_domain(["weather", "musik"]),
        lambda: lm.remove_domain("musik"),
        lambda: lm.save_domain("musik", "nowhere"),
        lambda: lm(ids, domain="musik"),
    ):
        with pytest.raises(StableQuantError, match="Did you mean 'music'"):
            call()
    assert lm.domain == "music"


def test_no_domain_at_all():
    with pytest.raises(StableQuantError, match="None was added"):
        MultiDomainLM(models.transformer(), domain="music")


class Louder(TransformerLM):
    def forward(self, src):
        return 2 * super().forward(src)


class Renamed(RNNLM):
    """Without a forward of its own."""


def test_trunks_that_cannot_be():
    sizes = {"d_model": 16, "nhead": 2, "d_ffn": 32}
    with pytest.raises(StableQuantError, match="Linear cannot be the trunk"):
        MultiDomainLM(torch.nn.Linear(2, 2))
    with pytest.raises(StableQuantError, match="forward of its own"):
        MultiDomainLM(Louder(24, num_encoder_layers=1, **sizes))
    for layers in ((0, 1), (1, 1)):
        decoder = TransformerLM(
            24,
            num_encoder_layers=layers[0],
            num_decoder_layers=layers[1],
            **sizes,
        )
        with pytest.raises(StableQuantError, match="num_encoder_layers alone"):
            MultiDomainLM(decoder)
    dropping = models.transformer()
    dropping.encoder.layerdrop_prob = 0.1
    with pytest.raises(StableQuantError, match="layerdrop"):
        MultiDomainLM(dropping)
    MultiDomainLM(Renamed(24))


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"bottelneck": 3}, "Did you mean 'bottleneck'"),
        ({"bottleneck": 0}, "at least 1"),
        ({"bottleneck": 2.0}, "whole number"),
        ({"rank": True}, "whole number"),
        ({"layer_norms": 1}, "True or False"),
        ({"output_bias": None}, "True or False"),
        ({"related_layers": "ful"}, "Did you mean 'full'"),
        ({"related_layers": None}, "unknown"),
        (["bottleneck"], "maps options"),
    ],
)
def test_wrong_knobs(knobs, match):
    with pytest.raises(KnobError, match=match):
        MultiDomainLM(models.transformer(), {"a": knobs})


@given(
    st.builds(
        DomainConfig,
        bottleneck=st.integers(1, 99),
        layer_norms=st.booleans(),
        related_layers=st.sampled_from(["none", "low_rank", "full"]),
        rank=st.integers(1, 99),
        output_bias=st.booleans(),
    )
)
def test_configuration_survives_plain_data(config):
    assert DomainConfig.of(config.to_dict()) == config
