"""The recipes of SUPERB run from end to end."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks import superb
from speechbrain_stablequant.models.huggingface import Wav2Vec2
from tests.recipes.superb import (
    FOLDER,
    SMALL,
    WORDS,
    rows_of,
    run_recipe,
    write_commands,
    write_tone,
    write_voxceleb,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_commands(folder / "commands")
    write_voxceleb(folder / "voxceleb")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A published encoder."""
    folder = tmp_path_factory.mktemp("encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER / "Encoder"))
        from publish_encoder import write_encoder

        torch.save(Wav2Vec2(SMALL).state_dict(), folder / "float.ckpt")
        write_encoder(SMALL, folder / "float.ckpt", folder)
    return str(folder)


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_recognition(data, source, tmp_path, monkeypatch):
    run_recipe(
        monkeypatch,
        "ASR",
        "commands.yaml",
        data_folder=data / "commands",
        encoder_source=source,
        output_folder=tmp_path,
        number_of_epochs=1,
        max_train_utterances=10,
        rnn_neurons=8,
        output_neurons=6,
    )
    result = result_of(tmp_path)
    assert result["metric"] == "WER"
    rows = rows_of(tmp_path / "test.csv")
    assert sorted(key for key, *_ in result["items"]) == sorted(
        row["ID"] for row in rows
    )
    assert f"{result['value']:.2f}" in (tmp_path / "wer_test.txt").read_text()
    # The head alone is saved
    saved = {p.name for p in (tmp_path / "save").glob("CKPT*/*")}
    assert "rnn.ckpt" in saved
    assert "encoder.ckpt" not in saved


def test_recognition_of_librispeech(source, tmp_path, monkeypatch):
    data = tmp_path / "LibriSpeech"
    for speaker, split in enumerate(("train", "dev-clean", "test-clean")):
        folder = data / split / f"{speaker}" / "1"
        lines = [f"{speaker}-1-{n} GO UP" for n in range(2)]
        for line in lines:
            write_tone(folder / f"{line.split()[0]}.flac", speaker)
        (folder / f"{speaker}-1.trans.txt").write_text("\n".join(lines))
    run_recipe(
        monkeypatch,
        "ASR",
        "librispeech.yaml",
        data_folder=data,
        train_splits=["train"],
        encoder_source=source,
        output_folder=tmp_path,
        number_of_epochs=1,
        rnn_neurons=8,
        output_neurons=6,
    )
    assert [w for *_, w in result_of(tmp_path)["items"]] == [2.0, 2.0]


def test_keywords_with_and_without_a_cache(data, source, tmp_path, monkeypatch):
    losses = []
    for cache_features in (True, False):
        folder = tmp_path / str(cache_features)
        run_recipe(
            monkeypatch,
            "KS",
            "keywords.yaml",
            data_folder=data / "commands",
            encoder_source=source,
            output_folder=folder,
            number_of_epochs=2,
            out_n_neurons=2,
            cache_features=cache_features,
        )
        log = (folder / "train_log.txt").read_text()
        losses += [float(log.split("test loss: ")[1].split(",")[0])]
        rows = rows_of(folder / "predictions.csv")
        assert {row["reference"] for row in rows} == set(WORDS)
        right = [row["reference"] == row["prediction"] for row in rows]
        result = result_of(folder)
        assert result["value"] == pytest.approx(100 * sum(right) / len(right))
        assert result["low"] <= result["value"] <= result["high"]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_official_lists_are_read(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "KS"))
    from keywords_prepare import prepare_keywords

    folder = tmp_path / "data"
    write_commands(folder, speakers=3)
    (folder / "validation_list.txt").write_text("up/00000000_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("go/00000001_nohash_0.wav\n")
    prepare_keywords(str(folder), str(tmp_path))
    assert [row["ID"] for row in rows_of(tmp_path / "dev.csv")] == [
        "up/00000000_nohash_0.wav"
    ]
    assert rows_of(tmp_path / "test.csv")[0]["label"] == "go"
    assert len(rows_of(tmp_path / "train.csv")) == 4


def test_identification(data, source, tmp_path, monkeypatch):
    options = {
        "data_folder": data / "voxceleb",
        "encoder_source": source,
        "output_folder": tmp_path,
        "number_of_epochs": 1,
    }
    with pytest.raises(ValueError, match="set out_n_neurons"):
        run_recipe(
            monkeypatch, "SID", "speakers.yaml", out_n_neurons=4, **options
        )
    run_recipe(monkeypatch, "SID", "speakers.yaml", out_n_neurons=5, **options)
    rows = rows_of(tmp_path / "predictions.csv")
    assert len(rows) == 10
    assert len({row["reference"] for row in rows}) == 5


def test_verification(data, source, tmp_path, monkeypatch):
    run_recipe(
        monkeypatch,
        "ASV",
        "xvector.yaml",
        data_folder=data / "voxceleb",
        encoder_source=source,
        output_folder=tmp_path,
        number_of_epochs=1,
        dev_speakers=2,
        out_n_neurons=1,
        tdnn_channels=[8, 8, 8, 8, 8],
        emb_dim=8,
        max_seconds=0.4,
    )
    assert {row["spk_id"] for row in rows_of(tmp_path / "test.csv")} == {
        "id0",
        "id1",
    }
    speakers = {row["spk_id"] for row in rows_of(tmp_path / "train.csv")}
    assert len(speakers) == 1
    assert not speakers & {"id0", "id1"}
    assert 0 <= result_of(tmp_path)["value"] <= 100
    assert len((tmp_path / "scores.txt").read_text().split("\n")) >= 4


@pytest.mark.parametrize(
    ("hparams", "method", "layers"),
    [
        ("student.yaml", "uniform", 2),
        ("quantized.yaml", "uniform", 3),
        ("quantized.yaml", "quantization_aware", 3),
    ],
)
def test_encoders_are_compressed_and_published(
    data, source, tmp_path, monkeypatch, hparams, method, layers
):
    changes = {"ptq_method": method, "number_of_epochs": 0}
    if hparams == "student.yaml":
        changes.update(student_layers=1, number_of_epochs=1)
    if method == "quantization_aware":
        changes["ptq_training"] = "{epochs: 1}"
    run_recipe(
        monkeypatch,
        "Encoder",
        hparams,
        encoder_source=source,
        audio_patterns=json.dumps([str(data / "commands" / "*" / "*.wav")]),
        output_folder=tmp_path,
        dev_share=0.2,
        test_share=0.2,
        min_seconds=0.1,
        **changes,
    )
    from downstream import load_encoder

    sizes = []
    for kind in ("float", "quantized"):
        folder = tmp_path / f"encoder_{kind}"
        encoder = load_encoder(str(folder))
        assert len(encoder(torch.randn(1, 4000), torch.ones(1))) == layers
        sizes.append(superb.num_bytes(folder))
    assert sizes[1] < 0.5 * sizes[0]
    # The teacher is not in the checkpoint, nor are the heads published
    saved = {p.stem for p in (tmp_path / "save").glob("CKPT*/*.ckpt")}
    assert "teacher" not in saved
    log = (tmp_path / "train_log.txt").read_text()
    bits = "W8A8" if hparams == "student.yaml" else "W2A8"
    assert f"ptq: {bits} {method}" in log
    assert "test layer 2: " in log
    if hparams == "quantized.yaml":
        # The float student is the teacher, also after training with low bits:
        # no difference, and a cosine of 1
        assert log.split("test loss: ")[1].startswith("3.13e-01")
