"""One file for each domain: the same bits again, or a refusal."""

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechbrain_stablequant import quantize, save_quantized
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.models.multi_domain import MultiDomainLM, files
from tests.unit.models.multi_domain import models
from tests.unit.models.multi_domain.models import outputs, refuse

TRUNKS = {"transformer": models.transformer, "rnn": models.recurrent}
CONFIGS = (
    {},
    {"related_layers": "full", "bottleneck": 5},
    {"related_layers": "none", "output_bias": False, "layer_norms": False},
    {"related_layers": "none"},
    {"rank": 3, "output_bias": False},
)


def model(kind="transformer", seed=0):
    return MultiDomainLM(TRUNKS[kind](seed)).eval()


@pytest.fixture
def good(tmp_path):
    lm = models.multi_domain(models.transformer(), "music")
    return lm.save_domain("music", tmp_path / "music.safetensors")


# -- there and back --------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", TRUNKS)
def test_the_same_bits(kind, config, tmp_path):
    lm = model(kind)
    models.shake(lm.add_domain("music", config))
    path = lm.save_domain("music", tmp_path / "m.safetensors")
    other = model(kind)
    state = torch.get_rng_state()
    assert other.load_domain(path) == "music"
    assert torch.equal(torch.get_rng_state(), state)
    assert other.domain is None
    assert other.domains["music"].config == lm.domains["music"].config
    assert models.same_bits(
        other.domains["music"], models.copies(lm.domains["music"])
    )
    assert torch.equal(outputs(other, "music"), outputs(lm, "music"))
    assert torch.equal(outputs(other, None), outputs(lm, None))


def test_a_loaded_domain_learns_on(good):
    lm = model()
    lm.load_domain(good)
    assert all(p.requires_grad for p in lm.domains["music"].parameters())
    losses = models.train(lm, domain="music")
    assert losses[-1] < losses[0]


def test_the_same_bytes(good, tmp_path):
    lm = models.multi_domain(models.transformer(), "music")
    again = lm.save_domain("music", tmp_path / "again.safetensors")
    assert again.read_bytes() == good.read_bytes()
    other = model()
    other.load_domain(again)
    other.add_domain("weather")
    third = other.save_domain("music", tmp_path / "third.safetensors")
    assert third.read_bytes() == good.read_bytes()


def test_a_file_is_small(good):
    lm = models.multi_domain(models.transformer(), "music")
    values = sum(p.numel() for p in lm.domains["music"].parameters())
    assert good.stat().st_size < 4 * values + 6000


def test_another_name(good):
    lm = model()
    assert lm.load_domain(good, "chansons") == "chansons"
    assert lm.load_domain(good) == "music"
    assert torch.equal(outputs(lm, "chansons"), outputs(lm, "music"))


def test_other_domains_do_not_notice(good):
    lm = models.multi_domain(models.transformer(), "a", domain="a")
    before, output = models.copies(lm), outputs(lm, "a")
    lm.load_domain(good)
    assert lm.domain == "a"
    assert torch.equal(outputs(lm, "a"), output)
    lm.remove_domain("music")
    assert models.same_bits(lm, before)


def test_half_precision_there_and_back(good, tmp_path):
    lm = model()
    lm.load_domain(good)
    path = lm.bfloat16().save_domain("music", tmp_path / "half.safetensors")
    assert path.stat().st_size < 0.7 * good.stat().st_size
    lm.load_domain(path, "same")
    assert models.same_bits(
        lm.domains["same"], models.copies(lm.domains["music"])
    )
    full = model()
    full.load_domain(path, same_trunk=False)
    assert {p.dtype for p in full.parameters()} == {torch.float32}


def test_header_says_what_it_is(good):
    header = files.read_domain(good)
    assert (header.name, header.quantized) == ("music", False)
    assert header.trunk == files.trunk_hash(models.transformer())


def test_an_older_file_is_replaced_only_at_the_end(good):
    before = good.read_bytes()
    lm = model()
    lm.add_domain("music")
    lm.domains["music"].output.to("meta")  # cannot be written
    with pytest.raises(Exception, match="meta"):
        lm.save_domain("music", good)
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]


# -- the trunk -------------------------------------------------------------------------


def test_another_trunk(good):
    refuse(good, "same_trunk=False", model(seed=1))
    lm = model(seed=1)
    lm.load_domain(good, same_trunk=False)
    assert "music" in lm.domains


@pytest.mark.parametrize(
    "lm",
    [
        MultiDomainLM(models.transformer(d_model=32)),
        MultiDomainLM(models.transformer(num_encoder_layers=1)),
        MultiDomainLM(models.transformer(num_encoder_layers=3)),
        MultiDomainLM(models.transformer(vocab=30)),
        MultiDomainLM(models.recurrent()),
    ],
    ids=["wider", "fewer", "more", "vocabulary", "recurrent"],
)
def test_a_trunk_that_does_not_fit(good, lm):
    refuse(good, "trunk", lm)
    refuse(good, "this trunk|has no '", lm, same_trunk=False)


def test_training_a_domain_keeps_the_trunk_the_same(good):
    lm = model()
    lm.load_domain(good)
    models.train(lm, domain="music")
    lm.load_domain(good, "before")


# -- files that are refused --------------------------------------------------------------


def rewrite(path, tensors=None, about=None, **fields):
    """Write a changed file whose hash is right all the same."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    data = {**load_file(path), **(tensors or {})}
    data = {k: v for k, v in data.items() if v is not None}
    content = {**json.loads(header["domain"]), **(about or {})}
    content = {k: v for k, v in content.items() if v is not None}
    header["domain"] = json.dumps(content, sort_keys=True)
    header.update(fields)
    if "sha256" not in fields and header["domain"] is not None:
        header["sha256"] = files._digest(data, header["domain"])
    save_file(data, path, {k: v for k, v in header.items() if v is not None})
    return path


def test_rewriting_nothing_is_accepted(good):
    model().load_domain(rewrite(good))


def test_truncated_anywhere(good):
    data = good.read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) - 1, *range(10, len(data), 1499)}:
        good.write_bytes(data[:length])
        refuse(good)


def test_every_flipped_bit_is_noticed(good):
    data = good.read_bytes()
    lm = models.multi_domain(models.transformer(), "a")
    for position in range(0, 8 * len(data), 1777):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        good.write_bytes(bytes(changed))
        with pytest.raises(StableQuantError):
            lm.load_domain(good)
    assert list(lm.domains) == ["a"]


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 1, 0])
def test_header_length_is_checked(good, length):
    data = good.read_bytes()
    good.write_bytes(struct.pack("<Q", length) + data[8:])
    refuse(good, "damaged")


def config(**knobs):
    return {"config": {"bottleneck": 12, **knobs}}


DOWN, UP = "adapters.layer0_attention.down.weight", "output.1.weight"
DEEP = "[" * 100_000 + "]" * 100_000
CASES = {
    "wide": ({"about": config(bottleneck=10**9)}, DOWN),
    "wider": ({"about": config(bottleneck=10**15)}, DOWN),
    "too-wide": ({"about": config(bottleneck=10**30)}, "bottleneck=10"),
    "rank": ({"about": config(rank=10**9)}, r"output\.0"),
    "narrow": ({"about": config(bottleneck=1)}, DOWN),
    "other-layers": ({"about": config(related_layers="full")}, "no place"),
    "no-norms": ({"about": config(layer_norms=False)}, "no place"),
    "negative": ({"about": config(bottleneck=-1)}, "at least 1"),
    "text": ({"about": config(bottleneck="12")}, "bottleneck is '12'"),
    "float": ({"about": config(rank=8.0)}, "rank is 8.0"),
    "list": ({"about": config(related_layers=["full"])}, "unknown"),
    "unknown-knob": ({"about": config(bottle=1)}, "Did you mean"),
    "config": ({"about": {"config": [12]}}, "'config'"),
    "no-config": ({"about": {"config": None}}, "'config'"),
    "no-name": ({"about": {"domain": None}}, "'domain'"),
    "name": ({"about": {"domain": "../music"}}, "letters, digits"),
    "name-type": ({"about": {"domain": ["music"]}}, "'domain'"),
    "trunk": ({"about": {"trunk": 3}}, "'trunk'"),
    "no-json": ({"domain": "{"}, "damaged header"),
    "json-list": ({"domain": "[]"}, "'domain'"),
    "json-null": ({"domain": "null"}, "'domain'"),
    "deep": ({"domain": DEEP}, "header"),
    "long-number": ({"domain": "9" * 5000}, "header"),
    "no-header": ({"domain": None}, "damaged header"),
    "format": ({"format": "pt"}, "format: 'pt'"),
    "no-format": ({"format": None}, "format: None"),
    "version": ({"version": "2"}, "version: '2'"),
    "no-version": ({"version": None}, "version: None"),
    "hash": ({"sha256": "0" * 64}, "its own hash"),
    "no-hash": ({"sha256": None}, "its own hash"),
    "missing": ({"tensors": {DOWN: None}}, DOWN),
    "extra": ({"tensors": {"otuput": torch.zeros(2)}}, "Did you mean"),
    "shape": ({"tensors": {DOWN: torch.zeros(16, 12)}}, DOWN),
    "flat": ({"tensors": {UP: torch.zeros(24 * 8)}}, UP),
    "integers": ({"tensors": {UP: torch.zeros(24, 8).int()}}, UP),
    "complex": ({"tensors": {UP: torch.zeros(24, 8).cfloat()}}, UP),
}


@pytest.mark.parametrize("case", CASES)
def test_content_is_checked_although_the_hash_is_right(good, case):
    changes, match = CASES[case]
    refuse(rewrite(good, **changes), match)


def test_shapes_without_data(good):
    """A tensor of a billion values in a file of a few bytes."""
    with safe_open(good, "pt") as file:
        meta = file.metadata()
    for shape in ([10**9, 16], [1 << 62, 4], [0, 1 << 60], [-1], "x"):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        header = {"__metadata__": meta, DOWN: entry}
        text = json.dumps(header).encode()
        good.write_bytes(struct.pack("<Q", len(text)) + text)
        refuse(good)


def test_no_file_or_a_folder(tmp_path):
    refuse(tmp_path / "missing.safetensors", "Cannot read|No such file")
    refuse(tmp_path)


def test_a_name_that_is_taken(good):
    lm = MultiDomainLM(models.transformer(), ["a"])
    before = models.copies(lm)
    with pytest.raises(StableQuantError, match="music.safetensors.*Remove"):
        lm.load_domain(good, "a")
    assert models.same_bits(lm, before)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("how", ["pickle", "torch", "safetensors"])
def test_foreign_files(tmp_path, how):
    path = tmp_path / "foreign.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif how == "torch":
        torch.save({"w": Bomb()}, path)
    else:
        save_file({"w": torch.zeros(3)}, path)
    refuse(path)


def test_a_checkpoint_that_is_no_domain(tmp_path):
    trunk = models.transformer()
    plan = quantize(trunk, bits="W8", progress=False).plan
    refuse(save_quantized(trunk, tmp_path / "lm.ckpt", plan), "version: None")
