"""What must not get out, in the ways in which it may be written."""

import sys

import pytest
import sentencepiece

from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.privacy import (
    find_private,
    without_paths,
)


def found(folder, name, text, words=()):
    (folder / name).write_text(text, encoding="utf-8")
    return find_private(folder, [name], words)


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "/tmp/jane/a.csv"}',
        "# see /home/x/notes",
        "where: /usr/share/data.bin",
        "C:\\\\Users\\\\jane\\\\a.csv",
        "file:///srv/a.csv",
        "token: hf_" + 34 * "a",
    ],
)
def test_paths_and_tokens(tmp_path, text):
    assert found(tmp_path, "a.json", text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/tmp/home/x",
        "speechbrain/asr-wav2vec2",
        "a/b and 1/2 and </td> and // comment",
        "results/tmp/1986",
        "/no-such-folder-here/x",
    ],
)
def test_what_is_no_path_of_this_machine(tmp_path, text):
    assert not found(tmp_path, "a.md", text)


@pytest.mark.parametrize("word", ["/x/jörg/y", "/x/a&b/y", '/x/"q"/y'])
def test_known_words_however_written(tmp_path, word):
    import html
    import json

    for text in (word, json.dumps({"a": word}), html.escape(word)):
        assert found(tmp_path, "model.bin", text, [word])


def test_tokenizers_lose_their_paths_and_nothing_else(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "the quick brown fox jumps over\na lazy dog and so on\n" * 20
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "model"),
        vocab_size=30,
        minloglevel=2,
    )
    before = (tmp_path / "model.model").read_bytes()
    assert str(tmp_path).encode() in before
    after = without_paths(before)
    assert str(tmp_path).encode() not in after
    first, second = (
        sentencepiece.SentencePieceProcessor(model_proto=data)
        for data in (before, after)
    )
    for text in ("so what is it", "is", "unknown words"):
        assert first.encode(text) == second.encode(text)
    assert without_paths(after) == after


def test_protobuf_that_does_not_fit_is_said(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a quick brown fox\nso it is\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "model"),
        vocab_size=20,
        minloglevel=2,
    )
    module = "sentencepiece.sentencepiece_model_pb2"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PublishError, match="install -U .*protobuf"):
        without_paths((tmp_path / "model.model").read_bytes())


@pytest.mark.parametrize("data", [b"", b"\x00", b"PK\x03\x04abc", b"'a' => 0"])
def test_other_files_stay_as_they_are(data):
    assert without_paths(data) == data
