"""Unmodified recipes of SpeechBrain with nothing but the block appended."""

import json
import shutil

import pytest
import sentencepiece
import soundfile
import torch
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from speechbrain_stablequant import QuantizationPlan, read_header
from speechbrain_stablequant.publishing import PublishOptions, make_folder
from tests.integration import folders, toy
from tests.integration.real_data import data_folder, recipe_folder, run_recipe

FEW = "calibration_utterances: 4, search_utterances: 8"
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [24] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    recipe_folder("LibriSpeech")  # unpacking would be in vain without it
    return data_folder("LibriSpeech", tmp_path_factory.mktemp("data"))


def with_block(source, target, *replacements):
    """Write a recipe's own YAML with the block at its end."""
    text = source.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    target.write_text(text + toy.BLOCK)
    return target


def few_utterances(librispeech, path):
    """Write a data file as the recipe's: four utterances of a split."""
    chapter = sorted(librispeech.glob(f"{path.stem}/*/*"))[0]
    (transcripts,) = chapter.glob("*.trans.txt")
    rows = ["ID,duration,wav,spk_id,wrd"]
    for line in transcripts.read_text().splitlines()[:4]:
        key, _, words = line.partition(" ")
        wav = chapter / f"{key}.flac"
        seconds = soundfile.info(wav).duration
        rows.append(f"{key},{seconds},{wav},{key.split('-')[0]},{words}")
    path.write_text("\n".join(rows))
    return path


def json_list(*values) -> str:
    return json.dumps([str(value) for value in values])


def untouched(recipe) -> set:
    return {(str(p), p.stat().st_mtime_ns) for p in recipe.rglob("*")}


TRAINED = "method: quantization_aware, bits: W2A8, training: {epochs: 2}"
METHODS = {
    "W8A8 stablequant": FEW,
    "W2A8 quantization_aware": f"{FEW}, {TRAINED}",
}


def check(folder, tests, files, label="W8A8 stablequant"):
    """Check what every run leaves behind; return its report."""
    found = folders.report(folder)
    assert [t["name"] for t in found["tests"]] == tests
    assert {f["name"] for f in found["files"]} == files
    assert found["coverage"]["fraction"] >= 0.95
    for file in found["files"]:
        path = folder / "ptq" / "checkpoint" / f"{file['name']}.ckpt"
        assert path.stat().st_size == file["num_bytes"]
        assert read_header(path)["plan"].layers
    for test in found["tests"]:
        loss = test["metrics"]["loss"]
        assert loss["float"] > 0
        assert loss["quantized"] > 0
    log = (folder / "train_log.txt").read_text()
    # Epochs of training are logged as well, but not as tests.
    labelled = [line for line in log.splitlines() if f"ptq: {label}" in line]
    assert sum("test loss" in line for line in labelled) == len(tests)
    assert log.count("test loss") == 2 * len(tests)
    for name in tests:
        for suffix in ("", "_ptq"):
            path = folder / f"wer_{name}{suffix}.txt"
            assert path.read_text().startswith("%WER"), path
    return found


def check_published(folder, interface):
    """Check that a clean process gets the recipe's own results from a folder.

    The model knows nothing yet, so that its words are not many; but those it
    has are the same, but for padding.
    """
    made = make_folder(folder, PublishOptions(output=str(folder / "hub")))
    assert made.interface == interface
    assert made.check.metric == "WER"
    assert made.check.items >= 8
    assert made.check.same >= made.check.items - 2
    yaml = (made.folder.path / "hyperparams.yaml").read_text()
    assert str(folder.parent) not in yaml
    return made


@pytest.mark.parametrize(
    ("family", "label"),
    [
        ("Wav2Vec2", "W8A8 stablequant"),
        ("HuBERT", "W8A8 stablequant"),
        ("Wav2Vec2", "W2A8 quantization_aware"),
    ],
)
def test_ctc(librispeech, tmp_path, family, label):
    import transformers

    recipe = recipe_folder("LibriSpeech/ASR/CTC")
    hub, out = tmp_path / "hub", tmp_path / "out"
    torch.manual_seed(0)
    base = {"Wav2Vec2": "Wav2Vec2", "HuBERT": "Hubert"}[family]
    config = getattr(transformers, f"{base}Config")(**TINY)
    getattr(transformers, f"{base}Model")(config).save_pretrained(hub)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(hub)
    replacements = [("input_shape: [null, null, 1024]",) * 2]
    replacements[0] = (replacements[0][0], "input_shape: [null, null, 32]")
    if family == "HuBERT":
        replacements.append(("wav2vec2.Wav2Vec2", "hubert.HuBERT"))
    yaml = with_block(
        recipe / "hparams" / "train_hf_wav2vec.yaml",
        tmp_path / "train.yaml",
        *replacements,
    )
    before = untouched(recipe)
    run_recipe(
        recipe,
        "train_with_wav2vec.py",
        yaml,
        debug=True,
        data_folder=librispeech,
        output_folder=out,
        wav2vec2_hub=hub,
        train_splits='["dev-clean"]',
        dev_splits='["dev-clean"]',
        test_splits='["test-clean"]',
        test_csv=json_list(out / "test-clean.csv", out / "dev-clean.csv"),
        dnn_neurons=32,
        ptq=f"{{{METHODS[label]}}}",
    )
    assert {p for p in untouched(recipe) if "pycache" not in p[0]} == {
        p for p in before if "pycache" not in p[0]
    }
    files = {"wav2vec2", "model"}
    found = check(out, ["test-clean", "dev-clean"], files, label)
    layers = QuantizationPlan.load(out / "ptq" / "plan.json").layers
    if label == "W8A8 stablequant":
        assert found["search"]["joint"]["metric"] == "WER"
    else:
        widths = [layer.weight.bits for layer in layers.values()]
        assert sorted(set(widths)) == [2, 8]
        assert widths.count(8) == 2
    kinds = [layer.kind for layer in layers.values()]
    assert (kinds.count("Conv1d"), kinds.count("Linear")) == (8, 16)
    assert found["unreached_layers"] == []
    if label == "W8A8 stablequant":
        check_published(out, "EncoderASR")


@pytest.fixture(scope="module")
def language_model(librispeech, tmp_path_factory):
    """Train a tokenizer, and draw a small language model to go with it."""
    folder = tmp_path_factory.mktemp("lm")
    lines = [
        line.partition(" ")[2]
        for path in sorted(librispeech.glob("dev-clean/*/*/*.trans.txt"))
        for line in path.read_text().splitlines()
    ]
    (folder / "text.txt").write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        character_coverage=1.0,
        minloglevel=2,
    )
    shutil.move(folder / "tokenizer.model", folder / "tokenizer.ckpt")
    torch.manual_seed(0)
    model = TransformerLM(
        vocab=60,
        d_model=32,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=0,
        d_ffn=64,
        activation=torch.nn.GELU,
    )
    torch.save(model.state_dict(), folder / "lm.ckpt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("label", METHODS)
def test_transformer_with_language_model(
    librispeech, language_model, tmp_path, label
):
    """It averages, saves in TEST and prunes; its LM sits in a scorer."""
    recipe = recipe_folder("LibriSpeech/ASR/transformer")
    out = tmp_path / "out"
    yaml = with_block(
        recipe / "hparams" / "transformer.yaml", tmp_path / "train.yaml"
    )
    dev, test = (
        few_utterances(librispeech, tmp_path / f"{split}.csv")
        for split in ("dev-clean", "test-clean")
    )
    modules = "[CNN, Transformer, seq_lin, ctc_lin, lm_model]"
    run_recipe(
        recipe,
        "train.py",
        yaml,
        data_folder=librispeech,
        output_folder=out,
        pretrained_lm_tokenizer_path=language_model,
        skip_prep=True,
        train_csv=dev,
        valid_csv=dev,
        test_csv=json_list(test, dev),
        number_of_epochs=2,
        num_bucket=2,
        lm_model="{d_model: 32, nhead: 2, num_encoder_layers: 1, d_ffn: 64}",
        output_neurons=60,
        d_model=32,
        d_ffn=64,
        num_encoder_layers=2,
        num_decoder_layers=1,
        nhead=2,
        valid_search_interval=1,
        valid_beam_size=2,
        test_beam_size=2,
        max_decode_ratio=0.1,
        num_workers=0,
        max_batch_length_train=30,
        max_batch_length_val=30,
        ptq=f"{{{METHODS[label]}, modules: {modules}}}",
    )
    files = {"model", "lm_model"}
    found = check(out, ["test-clean", "dev-clean"], files, label)
    rows = {r["name"]: r for r in found["coverage"]["parameters"]}
    for name in ("Transformer", "lm_model"):
        hidden = [
            row
            for key, row in rows.items()
            if key.startswith(name) and key.endswith("in_proj_weight")
        ]
        assert hidden
        assert all(row["status"] == "quantized" for row in hidden)
    # The float checkpoint that the recipe keeps is float, and the only one.
    (kept,) = (out / "save").glob("CKPT+*")
    state = torch.load(kept / "model.ckpt", weights_only=True)
    weights = [w for k, w in state.items() if k.endswith("in_proj_weight")]
    assert weights
    assert all(len(weight.unique()) > 1000 for weight in weights)
    if label == "W8A8 stablequant":
        made = check_published(out, "EncoderDecoderASR")
        names = made.folder.files()
        assert {"lm_model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"} <= {
            *names
        }
        assert "lm.ckpt" not in names  # the float one
