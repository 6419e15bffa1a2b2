"""The recipes of multi-domain language models, from training to the Hub."""

import random
from pathlib import Path

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from speechbrain_stablequant import load_quantized, read_header
from speechbrain_stablequant.errors import CheckpointError, StableQuantError
from speechbrain_stablequant.models.multi_domain import (
    LanguageModel,
    MultiDomainLM,
    files,
)
from speechbrain_stablequant.publishing import PublishOptions, make_folder
from tests.integration import folders
from tests.integration.real_data import run_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
COMMON = RECIPES / "LibriSpeech" / "LM"
ADAPTERS = RECIPES / "MultiDomainLM"
SUBJECTS = "the cat|a dog|my friend|the old man|a sparrow|she|he".split("|")
VERBS = "sees|likes|follows|finds|knows|hears".split("|")
OBJECTS = "the house|a tree|the river|bread|a song|the night".split("|")
STYLES = "jazz|rock|folk|soul|blues|swing".split("|")
TINY = {
    "output_neurons": 36,
    "number_of_epochs": 2,
    "d_model": 32,
    "nhead": 2,
    "num_encoder_layers": 2,
    "d_ffn": 64,
    "transformer_dropout": 0.0,
    "precision": "fp32",
}


def sentences(pattern, count, seed):
    rng = random.Random(seed)
    return "".join(
        pattern.format(
            *(rng.choice(x) for x in (SUBJECTS, VERBS, OBJECTS, STYLES))
        )
        + "\n"
        for _ in range(count)
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    books, music = "{0} {1} {2} and {3}", "play some {3} music {2}"
    for name, pattern, count in (
        ("books_a.train", books, 300),
        ("books_a.test", books, 20),
        ("sgd_music.train", music, 120),
        ("sgd_music.dev", music, 20),
        ("sgd_music.test", music, 30),
    ):
        path = folder / f"{name}.txt"
        path.write_text(sentences(pattern, count, seed=name))
    return folder


@pytest.fixture(scope="module")
def common(text, tmp_path_factory):
    """Train the common model and quantize it, as its README says."""
    out = tmp_path_factory.mktemp("common") / "out"
    yaml = COMMON / "hparams" / "transformer_mini.yaml"
    run_recipe(
        COMMON,
        "train.py",
        yaml,
        data_folder=text,
        output_folder=out,
        held_out="{valid: 20, common: 20}",
        lr=0.005,
        ptq_runtime="reference",
        dynamic_batch_sampler="{num_buckets: 4, max_batch_length: 600}",
        **TINY,
    )
    return out


def perplexity(folder):
    """Return the float and the quantized perplexity of a report."""
    found = folders.report(folder)
    (test,) = found["tests"]
    metric = test["metrics"]["PPL"]
    assert test["metrics"]["BPC"]["float"] > 0
    return metric


def test_common_model(common):
    metric = perplexity(common)
    assert 1 < metric["float"] < 30
    assert metric["quantized"] == pytest.approx(metric["float"], rel=0.05)
    assert metric["quantized"] != metric["float"]
    written = (common / "perplexity_common.txt").read_text()
    assert f"Perplexity: {metric['float']:.4f}" in written
    plan = read_header(common / "ptq" / "checkpoint" / "model.ckpt")["plan"]
    assert len(plan.layers) == 3 + 2 * 4  # with embedding and output


@pytest.fixture(scope="module")
def domain(common, text, tmp_path_factory):
    """Train a domain on the common model, and quantize both together."""
    out = tmp_path_factory.mktemp("domain") / "out"
    adapt(common, text, out, "adapters.yaml", ptq_runtime="reference")
    return out


def adapt(common, text, out, yaml, **overrides):
    run_recipe(
        ADAPTERS,
        "train.py",
        ADAPTERS / "hparams" / yaml,
        data_folder=text,
        output_folder=out,
        common_folder=common,
        tokenizer_file=common / "save" / "36_unigram.model",
        lr=0.01,
        dynamic_batch_sampler="{num_buckets: 4, max_batch_length: 600}",
        **{**TINY, "number_of_epochs": 3, **overrides},
    )


def trunk_of(common):
    """Return the common model as its best checkpoint has it."""
    (kept,) = (common / "save").glob("CKPT+*")
    trunk = TransformerLM(
        36,
        d_model=32,
        nhead=2,
        num_encoder_layers=2,
        d_ffn=64,
        activation=torch.nn.GELU,
        normalize_before=True,
    )
    state = torch.load(kept / "model.ckpt", weights_only=True)
    trunk.load_state_dict(state)
    return trunk.eval()


def test_domain_recipe(common, domain):
    """The trunk stays as it was, the domain's file fits it, both quantize."""
    metric = perplexity(domain)
    assert 1 < metric["float"] < perplexity(common)["float"]
    assert metric["quantized"] == pytest.approx(metric["float"], rel=0.05)
    found = folders.report(domain)
    assert found["unreached_layers"] == []
    assert found["coverage"]["fraction"] >= 0.95
    lm = MultiDomainLM(trunk_of(common)).eval()
    assert lm.load_domain(domain / "music.safetensors") == "music"
    (kept,) = (domain / "save").glob("CKPT+*")
    state = torch.load(kept / "model.ckpt", weights_only=True)
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    header = files.read_domain(domain / "music.safetensors")
    assert header.trunk == files.trunk_hash(lm.trunk)


@pytest.mark.parametrize("kind", ["common", "domain"])
def test_published_model_reads_text(kind, request, tmp_path):
    """A clean process finds each sentence as probable as the recipe did."""
    folder = request.getfixturevalue(kind)
    options = PublishOptions(output=str(tmp_path / "hub"))
    made = make_folder(folder, options)
    check = made.check
    assert (made.interface, check.metric) == ("LanguageModel", "PPL")
    assert check.same == check.items >= 8
    hub = str(made.folder.path)
    lm = LanguageModel.from_hparams(hub, savedir=str(tmp_path / "loaded"))
    sentence = next(iter(check.results))
    assert lm.perplexity([sentence]) > 1
    assert lm.domains == (["music"] if kind == "domain" else [])
    tokenizer = (made.folder.path / "tokenizer.ckpt").read_bytes()
    assert str(folder.parent.parent).encode() not in tokenizer
    if kind == "common":
        with pytest.raises(StableQuantError, match="has no domains"):
            lm.set_domain("music")
        return
    before = lm.perplexity(["play some music"])
    lm.set_domain(None)  # the trunk alone
    assert lm.perplexity(["play some music"]) != before


def test_domain_helps(common, domain, text):
    """On its own text, against the trunk alone."""
    lm = MultiDomainLM(trunk_of(common)).eval()
    lm.load_domain(domain / "music.safetensors")
    model = common / "save" / "36_unigram.model"
    tokenizer = sentencepiece.SentencePieceProcessor(str(model))
    lines = (text / "sgd_music.test.txt").read_text().splitlines()
    nats = {"music": 0.0, None: 0.0}
    for line in lines:
        ids = torch.tensor([1, *tokenizer.encode_as_ids(line), 2])
        for name in nats:
            with torch.no_grad():
                logits = lm(ids[None, :-1], domain=name)[0]
            loss = F.cross_entropy(logits, ids[1:], reduction="sum")
            nats[name] += loss.item()
    assert nats["music"] < 0.8 * nats[None]


def test_domain_on_the_quantized_trunk(common, text, tmp_path):
    """Trained on what the common recipe's block left, integers as they were."""
    out = tmp_path / "out"
    adapt(common, text, out, "adapters_quantized_trunk.yaml")
    trunk = load_quantized(
        trunk_of(common), common / "ptq" / "checkpoint" / "model.ckpt"
    )
    lm = MultiDomainLM(trunk).eval()
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    lm.load_domain(out / "music.safetensors")
    (kept,) = (out / "save").glob("CKPT+*")
    state = torch.load(kept / "model.ckpt", weights_only=True)
    for name, tensor in before.items():
        assert torch.equal(state[f"trunk.{name}"], tensor), name
    with pytest.raises(CheckpointError, match="another trunk"):
        MultiDomainLM(trunk_of(common)).load_domain(out / "music.safetensors")


def test_domain_learns_from_the_fine_tuned_model(common, text, tmp_path):
    """From its probabilities alone; it comes nearer to them than the trunk."""
    adapt(common, text, tmp_path / "full", "full.yaml", ptq_runtime="reference")
    adapt(
        common,
        text,
        tmp_path / "domain",
        "adapters_distilled.yaml",
        ptq_runtime="reference",
        teacher_folder=tmp_path / "full",
        distillation_weight=1.0,
    )
    teacher, student = trunk_of(tmp_path / "full"), trunk_of(common)
    student = MultiDomainLM(student).eval()
    student.load_domain(tmp_path / "domain" / "music.safetensors")
    tokens = torch.tensor([[1, *range(4, 30)]])
    with torch.no_grad():
        wanted = teacher(tokens).log_softmax(-1)
        distance = {
            name: F.kl_div(
                student(tokens, domain=name).log_softmax(-1),
                wanted,
                log_target=True,
                reduction="sum",
            ).item()
            for name in ("music", None)
        }
    assert distance["music"] < 0.7 * distance[None]
