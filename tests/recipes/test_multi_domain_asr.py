"""The multi-domain recogniser: preparation, training, decoding, tuning."""

import csv
import itertools
import math

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from tests.recipes.multi_domain_asr import (
    BLANK,
    BOS,
    EOS,
    FOLDER,
    RECIPES,
    lm_score,
    small_lm,
)

WORDS = "PLAY SOME LOUD MUSIC FOR ME THEN STOP IT AND SING ALONG".split()


@pytest.fixture(autouse=True)
def _beside_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


# -- decoding and tuning ------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    prefix = str(tmp_path_factory.mktemp("tokenizer") / "pieces")
    sentences = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=prefix,
        vocab_size=40,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=BLANK,
        hard_vocab_limit=False,
    )
    return SentencePieceProcessor(model_file=f"{prefix}.model")


def spoken(tokenizer, text, doubt=0.2):
    """Posteriors of a text, a blank after each piece."""
    ids = [k for piece in tokenizer.encode(text) for k in (piece, BLANK)]
    posteriors = torch.full((len(ids), len(tokenizer)), 1e-4)
    posteriors[torch.arange(len(ids)), ids] = 1 - doubt
    return (posteriors / posteriors.sum(-1, keepdim=True)).log()


def test_decode_returns_words(tokenizer):
    from decoding import decode, greedy, word_errors

    references = {"b": "PLAY SOME LOUD MUSIC", "a": "STOP IT"}
    posteriors = {k: spoken(tokenizer, v) for k, v in references.items()}
    assert decode({}, tokenizer) == {}
    for found in (
        decode(posteriors, tokenizer, batch_size=1),
        decode(posteriors, tokenizer, topk=3),
        greedy(posteriors, tokenizer),
    ):
        assert list(found) == ["b", "a"]
        assert {k: hyps[0].text for k, hyps in found.items()} == references
        assert word_errors(found, references).summarize("error_rate") == 0.0
        pieces = len(tokenizer.encode(references["a"]))
        assert found["a"][0].length == pieces


def test_rescoring_adds_the_language_model(tokenizer):
    from decoding import Hypothesis, rescore

    lm, texts = small_lm(len(tokenizer)), ["PLAY IT", "STOP IT", "SING"]
    nbest = {"a": [Hypothesis(t, -n, 2 + n) for n, t in enumerate(texts)]}
    before = [list(hyps) for hyps in nbest.values()]
    found = rescore(nbest, tokenizer, lm, lm_weight=0.6, length_weight=0.5)
    assert before == list(nbest.values())
    expected = sorted(
        (
            hyp.score
            + 0.5 * hyp.length
            + 0.6 * lm_score(lm, tokenizer.encode(hyp.text)),
            hyp.text,
        )
        for hyp in nbest["a"]
    )[::-1]
    assert [hyp.text for hyp in found["a"]] == [text for _, text in expected]
    # SpeechBrain's rescorer leaves out the padding token and normalises anew
    assert found["a"][0].score == pytest.approx(expected[0][0], abs=0.2)


def test_tuning_tries_weights_then_rewards():
    from decoding import Hypothesis, tune

    wrong = {(0.1, 0.0): 2, (0.3, 0.0): 1, (0.5, 0.0): 1, (0.3, 1.0): 0}

    def fake_search(lm_weight, length_weight):
        errors = wrong[lm_weight, length_weight]
        words = ["A", "B", "C"][errors:] + ["X"] * errors
        return {"u": [Hypothesis(" ".join(words), 0.0, 3)]}

    best, tried = tune(fake_search, {"u": "A B C"}, [0.1, 0.3, 0.5], [0.0, 1.0])
    assert best == {"lm_weight": 0.3, "length_weight": 1.0, "WER": 0.0}
    assert len(tried) == 4


# -- the recipe ---------------------------------------------------------------


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """Text whose dev and test sentences are partly in the training text."""
    folder = tmp_path_factory.mktemp("text")
    pairs = [f"{a} {b} {c}" for a, b, c in itertools.permutations(WORDS, 3)]
    parts = {"general": 0, "dev": 300, "test": 600}
    for name, start in parts.items():
        lines = pairs[start : start + 60]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    seen = pairs[300:330] + pairs[600:630]
    (folder / "seen.txt").write_text("\n".join(seen) + "\n")
    return folder


def prepare(text_folder, output, **changes):
    pytest.importorskip("espeakng_loader")
    from speech_prepare import prepare_speech

    options = {
        "save_folder": str(output),
        "audio_folder": str(output / "wav"),
        "data_folder": str(text_folder),
        "texts": {
            "train": ["general.txt"],
            "dev": ["dev.txt"],
            "test": ["test.txt"],
        },
        "n_sentences": {"train": 12, "dev": 3, "test": 4},
        "n_words": dict.fromkeys(("train", "dev", "test"), (3, 3)),
        "exclude": ["seen.txt"],
    }
    prepare_speech(**{**options, **changes})


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_preparation_keeps_splits_apart(text_folder, tmp_path):
    prepare(text_folder, tmp_path / "a")
    prepare(text_folder, tmp_path / "b")
    rows = {}
    for split, count in (("train", 12), ("dev", 3), ("test", 4)):
        rows[split] = rows_of(tmp_path / "a" / f"{split}.csv")
        again = rows_of(tmp_path / "b" / f"{split}.csv")
        assert len({row["wrd"] for row in rows[split]}) == count
        for row, same in zip(rows[split], again):
            audio = sb.dataio.dataio.read_audio(row["wav"])
            assert len(audio) / 16000 == pytest.approx(float(row["duration"]))
            # espeak-ng itself has some chance in it
            for column in ("ID", "spk_id", "wrd"):
                assert row[column] == same[column]
    voices = [{row["spk_id"] for row in each} for each in rows.values()]
    assert not any(a & b for a, b in itertools.combinations(voices, 2))
    seen = set((text_folder / "seen.txt").read_text().split("\n"))
    for split in ("dev", "test"):
        assert not seen & {row["wrd"] for row in rows[split]}


def test_preparation_is_done_once(text_folder, tmp_path):
    prepare(text_folder, tmp_path)
    written = (tmp_path / "dev.csv").stat().st_mtime_ns
    prepare(text_folder, tmp_path, texts={}, n_sentences={})
    assert (tmp_path / "dev.csv").stat().st_mtime_ns == written


def test_preparation_says_what_is_missing(text_folder, tmp_path):
    count = {"train": 12, "dev": 40, "test": 4}
    with pytest.raises(ValueError, match="n_sentences"):
        prepare(text_folder, tmp_path, n_sentences=count)
    with pytest.raises(FileNotFoundError, match="data_folder"):
        prepare(text_folder, tmp_path, exclude=["nowhere.txt"])
    with pytest.raises(ValueError, match="voice_ratio"):
        prepare(text_folder, tmp_path, voice_ratio=(100, 0, 10))


def load(name, **overrides):
    with open(FOLDER / "hparams" / name, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides)


def test_language_model_is_that_of_the_lm_recipe(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES / "LibriSpeech" / "LM"))
    mini = RECIPES / "LibriSpeech" / "LM" / "hparams" / "transformer_mini.yaml"
    folders = {"data_folder": ".", "output_folder": str(tmp_path)}
    with open(mini, encoding="utf-8") as file:
        lm = load_hyperpyyaml(file, folders)["model"]
    fused = load(
        "recognize.yaml",
        ctc_folder=".",
        lm_file=".",
        tokenizer_file=".",
        output_folder=str(tmp_path),
    )["lm"]
    shapes = [
        {key: value.shape for key, value in model.state_dict().items()}
        for model in (lm, fused)
    ]
    assert shapes[0] == shapes[1]
    # The same function too, which shapes do not tell
    fused.load_state_dict(lm.state_dict())
    tokens = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(lm.eval()(tokens), fused.eval()(tokens))


def test_train_and_recognize(tokenizer, text_folder, tmp_path):
    """All the way, with models too small to recognise anything."""
    from recognize import load_posteriors, recognize
    from train_ctc import CTC, dataio_prepare

    folder = tmp_path / "ctc"
    prepare(text_folder, folder / "save")
    overrides = {
        "data_folder": str(text_folder),
        "output_folder": str(folder),
        "tokenizer_file": ".",
        "output_neurons": len(tokenizer),
        "neurons": 8,
        "number_of_epochs": 1,
    }
    sb.create_experiment_directory(
        str(folder),
        hyperparams_to_save=str(FOLDER / "hparams" / "ctc_synthetic.yaml"),
        overrides=overrides,
        save_env_desc=False,
    )
    hparams = load("ctc_synthetic.yaml", **overrides)
    hparams["tokenizer"] = tokenizer
    train, valid, _, train_loader = dataio_prepare(hparams)
    brain = CTC(
        hparams["modules"],
        hparams["opt_class"],
        hparams,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train,
        valid,
        progressbar=False,
        train_loader_kwargs=train_loader,
        valid_loader_kwargs={"batch_size": 2},
    )

    dev_csv = str(folder / "save" / "dev.csv")
    first = load_posteriors(str(folder), dev_csv, str(tmp_path))
    cached = load_posteriors(str(folder), dev_csv, str(tmp_path))
    for row in rows_of(dev_csv):
        frames = math.ceil(100 * float(row["duration"]) / 4)
        assert abs(len(first[row["ID"]]) - frames) <= 1
        assert torch.equal(first[row["ID"]], cached[row["ID"]])

    for mode in ("fusion", "rescoring"):
        report, stats = recognize(
            {
                "mode": mode,
                "ctc_folder": str(folder),
                "dev_csv": dev_csv,
                "test_csv": str(folder / "save" / "test.csv"),
                "cache_folder": str(tmp_path),
                "tokenizer": tokenizer,
                "lm": small_lm(len(tokenizer)),
                "lm_weights": [0.5],
                "length_weights": [0.0, 1.0],
                "search": {"beam_size": 4, "topk": 4},
            }
        )
        assert len(report["dev"]["tried"]) == 2
        words = sum(weight for _, _, weight in report["test"]["items"])
        edits = sum(errors for _, errors, _ in report["test"]["items"])
        assert words == 12
        assert report["test"]["WER"] == pytest.approx(100 * edits / words)
        assert report["test"]["WER"] == stats.summarize("error_rate")
        assert report["test"]["change"]["confidence"] == 0.95
    with pytest.raises(FileNotFoundError, match="hyperparams"):
        load_posteriors(str(tmp_path), dev_csv, str(tmp_path))
