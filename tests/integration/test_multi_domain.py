"""Domains in SpeechBrain's own search, rescoring and checkpoints."""

import copy

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import (
    CTCScorer,
    RescorerBuilder,
    ScorerBuilder,
    TransformerLMRescorer,
    TransformerLMScorer,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_stablequant import quantize
from speechbrain_stablequant.models.multi_domain import MultiDomainLM

VOCAB, WIDTH, EOS = 11, 32, 2


def language_model(vocab=VOCAB, *names, seed=0):
    """Return a model whose domains differ a lot."""
    torch.manual_seed(seed)
    trunk = TransformerLM(
        vocab,
        d_model=WIDTH,
        nhead=2,
        num_encoder_layers=2,
        d_ffn=64,
        activation=torch.nn.GELU,
    )
    lm = MultiDomainLM(trunk, names).eval()
    for parameter in lm.domains.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return lm


# -- shallow fusion ----------------------------------------------------------------


@pytest.fixture
def search():
    """Return a searcher that fuses a language model, and encoder states."""
    torch.manual_seed(1)
    net = TransformerASR(
        tgt_vocab=VOCAB,
        input_size=8,
        d_model=WIDTH,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ffn=64,
    ).eval()
    ctc, out = (
        Linear(input_size=WIDTH, n_neurons=VOCAB),
        Linear(input_size=WIDTH, n_neurons=VOCAB),
    )
    states = torch.randn(4, 9, WIDTH)

    def run(lm, rows=slice(None), weight=0.8):
        scorer = ScorerBuilder(
            full_scorers=[
                TransformerLMScorer(language_model=lm, temperature=1.15),
                CTCScorer(ctc_fc=ctc, blank_index=0, eos_index=EOS),
            ],
            weights={"transformerlm": weight, "ctc": 0.4},
        )
        searcher = S2STransformerBeamSearcher(
            modules=[net, out],
            bos_index=1,
            eos_index=EOS,
            min_decode_ratio=0.0,
            max_decode_ratio=1.0,
            using_eos_threshold=False,
            beam_size=4,
            temperature=1.15,
            scorer=scorer,
        )
        part = states[rows]
        with torch.no_grad():
            hyps, _, scores, _ = searcher(part, torch.ones(len(part)))
        return hyps, scores.flatten()

    return run


def test_trunk_alone_in_search(search):
    lm = language_model(VOCAB, "a")
    expected, scores = search(lm.trunk)
    found, same = search(lm)
    assert found == expected
    assert torch.allclose(same, scores)


@pytest.mark.parametrize("bits", [None, "W8"])
def test_domains_of_one_search_are_those_of_separate_ones(search, bits):
    lm = language_model(VOCAB, "a", "b")
    names = ["a", None, "b", "a"]
    if bits is not None:
        quantize(lm, bits=bits, progress=False)
    found = {}
    for name in ("a", "b", None):
        lm.set_domain(name)
        found[name] = search(lm)[0]
    assert found["a"] != found["b"] != found[None] != found["a"]
    lm.set_domain(names)
    together, scores = search(lm)
    for row, name in enumerate(names):
        lm.set_domain(name)
        hyps, score = search(lm, slice(row, row + 1))
        assert together[row] == hyps[0]
        assert torch.allclose(scores[row], score[0], atol=1e-4)


# -- rescoring -----------------------------------------------------------------------------

MUSIC = [
    "PLAY SOME JAZZ",
    "PLAY THE NEXT SONG",
    "STOP THE MUSIC",
    "PLAY A SONG",
]
MONEY = ["PAY MY BILL", "SEND MONEY HOME", "PAY THE RENT", "SEND A BILL"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("tokenizer") / "tiny"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(MUSIC + MONEY),
        model_prefix=str(prefix),
        vocab_size=32,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(f"{prefix}.model")


def learn(lm, tokenizer, domain, sentences, steps=30):
    """Train a domain on a few sentences."""
    rows = [[1, *tokenizer.encode_as_ids(s), 2] for s in sentences]
    tensors = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    optimizer = torch.optim.AdamW(lm.parameters(), 0.02)
    for _ in range(steps):
        logits = lm(ids[:, :-1], domain=domain).flatten(0, 1)
        loss = F.cross_entropy(logits, ids[:, 1:].flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_rescoring_by_domain(tokenizer):
    """The same hypotheses, ordered as each utterance's domain has them."""
    lm = MultiDomainLM(language_model(32).trunk, ["music", "money"]).eval()
    learn(lm, tokenizer, "music", MUSIC)
    learn(lm, tokenizer, "money", MONEY)
    hyps = ["PLAY THE RENT", "PAY THE RENT", "PLAY THE SONG", "SEND MONEY"]
    scores = [0.0] * len(hyps)

    def rescore(*names):
        lm.set_domain(list(names) if len(names) > 1 else names[0])
        rescorer = RescorerBuilder(
            rescorers=[
                TransformerLMRescorer(
                    lm, tokenizer, device="cpu", bos_index=1, eos_index=2
                )
            ],
            weights={"transformerlm": 1.0},
        )
        topk = [list(hyps) for _ in names]
        return rescorer.rescore(topk, [list(scores) for _ in names])

    together, levels = rescore("money", "music", None)
    assert together[0][0] == "PAY THE RENT"
    assert together[1][0] == "PLAY THE SONG"
    for row, name in enumerate(("money", "music", None)):
        (alone,), (level,) = rescore(name)
        assert alone == together[row]
        assert level == pytest.approx(levels[row], rel=1e-4)


# -- checkpoints of SpeechBrain --------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, "W8A8"])
def test_stock_checkpointer(tmp_path, bits):
    batch = torch.randint(1, VOCAB, (3, 7))

    def make(seed):
        lm = language_model(VOCAB, "a", "b", seed=seed)
        if bits is not None:
            quantize(lm.trunk, [batch], bits=bits, progress=False)
        return lm

    lm, other = make(0), make(0)
    for parameter in other.domains.parameters():
        torch.nn.init.normal_(parameter)
    Checkpointer(tmp_path, {"model": lm}).save_checkpoint()
    Checkpointer(tmp_path, {"model": other}).recover_if_possible()
    for name in ("a", "b", None):
        assert torch.equal(other(batch, domain=name), lm(batch, domain=name))
    fewer = copy.deepcopy(lm)
    fewer.remove_domain("a")
    with pytest.raises(RuntimeError, match=r"domains\.a"):
        Checkpointer(tmp_path, {"model": fewer}).recover_if_possible()
