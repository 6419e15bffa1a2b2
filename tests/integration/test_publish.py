"""Stock SpeechBrain loads what was published, bit for bit."""

import shutil

import pytest
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition

from speechbrain_stablequant import (
    QuantizationPlan,
    read_header,
)
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import Conversion
from tests.integration import folders, toy
from tests.integration.publishing import (
    SPEAKER_YAML,
    asr_yaml,
    load_asr,
    voices,
)


def test_transcribes_as_in_memory(block_run, published, speech, tmp_path):
    folder, brain, _ = block_run
    model = load_asr(published, tmp_path / "saved")
    plan = QuantizationPlan.load(folder / "ptq" / "plan.json")
    modules = brain.modules
    modules.eval()
    with torch.no_grad():
        floats = _encode(brain, *speech)
        with Conversion(modules) as conversion:
            conversion.apply_plan(plan)
            expected = _encode(brain, *speech)
        loaded = model.encode_batch(*speech)
    assert torch.equal(loaded, expected)
    assert not torch.equal(loaded, floats)
    words, _ = model.transcribe_batch(*speech)
    decoded = brain.decode(expected, speech[1])
    assert [w.split(" ") for w in words] == decoded
    assert any(words)


def _encode(brain, wavs, lens):
    x = brain.modules.wav2vec2(wavs, lens)
    x = brain.modules.ctc_lin(brain.modules.enc(x))
    return brain.hparams.log_softmax(x)


def test_no_float_weights_are_there(published, tmp_path):
    """Nothing but the quantized files is fetched, or could be."""
    load_asr(published, tmp_path / "saved")
    names = {p.name for p in (tmp_path / "saved").iterdir()}
    assert names == {
        *("hyperparams.yaml", "wav2vec2.ckpt", "model.ckpt"),
        "tokenizer.ckpt",
    }
    for name in ("wav2vec2.ckpt", "model.ckpt"):
        assert read_header(published / name)["plan"].layers


def test_score_is_that_of_the_report(block_run, published, tmp_path):
    """The published model makes the errors that the report counts."""
    folder, brain, _ = block_run
    model = load_asr(published, tmp_path / "saved")
    errors = words = 0
    hparams = {"label_encoder": brain.hparams.label_encoder}
    hparams["save_folder"] = brain.hparams.save_folder
    stats = brain.hparams.error_rate_computer()
    test_set = toy.datasets(hparams)["test-clean"]
    for batch in brain.make_dataloader(
        test_set, toy.sb.Stage.TEST, batch_size=8
    ):
        found, _ = model.transcribe_batch(*batch.sig)
        stats.append(batch.id, [w.split(" ") for w in found], batch.words)
    test = folders.report(folder)["tests"][0]
    errors, words = stats.summarize("error_rate"), test["metrics"]["WER"]
    assert errors == words["quantized"]


def test_without_hooks_it_fails_loudly(published, tmp_path):
    """Stock loading must never leave random weights."""
    (published / "hyperparams.yaml").write_text(asr_yaml(hooks=""))
    with pytest.raises(Exception, match="(?i)weights.only|pickle|load"):
        load_asr(published, tmp_path / "saved")


@pytest.mark.parametrize("name", ["wav2vec2.ckpt", "model.ckpt"])
def test_damaged_file_is_refused(published, tmp_path, name):
    data = bytearray((published / name).read_bytes())
    data[-40] ^= 1
    (published / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        load_asr(published, tmp_path / "saved")


def test_files_of_another_model_are_refused(published, tmp_path):
    path = published / "hyperparams.yaml"
    path.write_text(
        path.read_text().replace("dnn_neurons: 32", "dnn_neurons: 48")
    )
    with pytest.raises(Exception, match="(?i)model|size|shape"):
        load_asr(published, tmp_path / "saved")


# -- speakers -----------------------------------------------------------------


def test_embeddings_are_those_in_memory(speaker, tmp_path):
    folder, embed, classifier = speaker
    loaded = EncoderClassifier.from_hparams(
        source=str(folder), savedir=str(tmp_path / "saved")
    )
    wavs = voices(5)
    embeddings = loaded.encode_batch(wavs)
    assert torch.equal(embeddings, embed(wavs))
    assert embeddings.std() > 0
    with torch.no_grad():
        expected = classifier(embeddings)
        assert torch.equal(loaded.mods.classifier(embeddings), expected)


def test_verification_scores_are_those_in_memory(speaker, tmp_path):
    folder, embed, _ = speaker
    loaded = SpeakerRecognition.from_hparams(
        source=str(folder), savedir=str(tmp_path / "saved")
    )
    first, second = voices(5), voices(5, 1.5)[:, :16000].flip(0)
    score, decision = loaded.verify_batch(first, second, threshold=0.5)
    expected = torch.nn.functional.cosine_similarity(
        embed(first), embed(second), dim=-1
    )
    assert torch.equal(score, expected)
    assert torch.equal(decision, expected > 0.5)
    assert len(score.unique()) == 5


def test_speaker_without_hooks_fails_loudly(speaker, tmp_path):
    folder, _, _ = speaker
    source = shutil.copytree(folder, tmp_path / "published")
    (source / "hyperparams.yaml").write_text(SPEAKER_YAML)
    with pytest.raises(Exception, match="(?i)weights.only|pickle|load"):
        SpeakerRecognition.from_hparams(
            source=str(source), savedir=str(tmp_path / "saved")
        )
