"""Domains whose layers are quantized: packed files, each with its plan."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from speechbrain_stablequant import quantize, read_header
from speechbrain_stablequant.artifacts import checkpoint_reader
from speechbrain_stablequant.errors import CheckpointError, StableQuantError
from speechbrain_stablequant.models.multi_domain import MultiDomainLM, files
from tests.unit.models.multi_domain import models
from tests.unit.models.multi_domain.models import outputs, refuse


def quantized(bits, names=("music", "weather")):
    lm = models.multi_domain(models.transformer(), *names)
    lm.set_domain([*names, None, None])
    return lm, quantize(lm, [models.tokens()], bits=bits, progress=False).plan


@pytest.mark.parametrize("bits", ["W8", "W4", "W8A8"])
def test_quantized_domain(bits, tmp_path):
    lm, plan = quantized(bits)
    path = lm.save_domain("music", tmp_path / "music.ckpt", plan)
    assert files.read_domain(path).quantized
    lm.load_domain(path, "again")
    assert torch.equal(outputs(lm, "again"), outputs(lm, "music"))
    float_trunk = MultiDomainLM(models.transformer()).eval()
    refuse(path, "same_trunk=False", float_trunk)
    float_trunk.load_domain(path, same_trunk=False)
    assert models.same_bits(
        float_trunk.domains["music"], models.copies(lm.domains["music"])
    )
    trunk_only = copy.deepcopy(lm.trunk)
    other = MultiDomainLM(trunk_only).eval()
    other.load_domain(path)
    assert torch.equal(outputs(other, "music"), outputs(lm, "music"))


def test_quantized_domain_saved_again(tmp_path):
    """Its plan is in its file."""
    lm, plan = quantized("W4")
    path = lm.save_domain("music", tmp_path / "music.ckpt", plan)
    other = MultiDomainLM(models.transformer()).eval()
    other.load_domain(path, same_trunk=False)
    with pytest.raises(StableQuantError, match="pass the plan"):
        other.save_domain("music", tmp_path / "again.ckpt")
    plan = read_header(path)["plan"]
    again = other.save_domain("music", tmp_path / "again.ckpt", plan)
    assert read_header(again)["plan"] == plan


def test_a_domain_quantized_alone_on_a_quantized_trunk(tmp_path):
    """The trunk was quantized long before the domain was trained."""
    lm = models.multi_domain(models.transformer(), "music")
    quantize(lm.trunk, bits="W8", progress=False)
    before, floats = models.copies(lm.trunk), outputs(lm, "music")
    plan = quantize(
        lm.domains["music"],
        [models.tokens()],
        forward=lambda _, batch: lm(batch, domain="music"),
        bits="W8A8",
        progress=False,
    ).plan
    assert models.same_bits(lm.trunk, before)
    assert torch.allclose(outputs(lm, "music"), floats, atol=0.2)
    assert len(lm.domains["music"].adapters) * 2 + 2 == len(plan.layers)
    path = lm.save_domain("music", tmp_path / "music.ckpt", plan)
    lm.load_domain(path, "again")
    assert torch.equal(outputs(lm, "again"), outputs(lm, "music"))


def test_quantized_domain_with_a_plan_of_another(tmp_path):
    lm, plan = quantized("W8")
    lm.add_domain("other")
    with pytest.raises(StableQuantError, match="does not name"):
        lm.save_domain("music", tmp_path / "m.ckpt", type(plan)({}))
    lm.save_domain("other", tmp_path / "f.safetensors", plan)
    assert not files.read_domain(tmp_path / "f.safetensors").quantized


def test_hostile_quantized_files(tmp_path):
    lm, plan = quantized("W8")
    path = lm.save_domain("music", tmp_path / "music.ckpt", plan)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    data, about = load_file(path), json.loads(header["extra"])
    for change in (
        {"config": {"bottleneck": 10**9}},
        {"config": {"bottleneck": 10**30}},
        {"config": {"rank": 10**9}},
        {"config": {"related_layers": "full"}},
        {"config": 3},
        {"domain": "../music"},
        {"trunk": None},
        {"domain_version": 2},
        {"domain_version": None},
    ):
        header["extra"] = json.dumps({**about, **change})
        header["sha256"] = checkpoint_reader.content_digest(data, header)
        save_file(data, path, header)
        refuse(path, same_trunk=False)
    header["extra"] = "[]"
    header["sha256"] = checkpoint_reader.content_digest(data, header)
    save_file(data, path, header)
    refuse(path)
    with pytest.raises(CheckpointError, match="domain file"):
        files.read_domain(path)
