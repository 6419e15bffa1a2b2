"""Stock SpeechBrain loads what was published, bit for bit."""

import shutil

import pytest
import torch
from speechbrain.inference.ASR import EncoderASR
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.speaker import SpeakerRecognition
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from speechbrain.processing.features import InputNormalization

from speechbrain_stablequant import (
    QuantizationPlan,
    quantize,
    read_header,
    save_quantized,
)
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import Conversion

from . import folders, toy

HOOKS = """
    custom_hooks:
        wav2vec2: !name:speechbrain_stablequant.load_quantized
        model: !name:speechbrain_stablequant.load_quantized
"""
ASR_TAIL = """
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    wav2vec2: !ref <wav2vec2>
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>
    log_softmax: !ref <log_softmax>

modules:
    encoder: !ref <encoder>

tokenizer: !new:speechbrain.dataio.encoder.CTCTextEncoder

decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: 0

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        wav2vec2: !ref <wav2vec2>
        model: !ref <model>
        tokenizer: !ref <tokenizer>
"""


def asr_yaml(hooks=HOOKS) -> str:
    """Return the recipe's architecture with what inference needs."""
    text = toy.YAML.read_text()
    blocks = {}
    for block in text.split("\n\n"):
        blocks[block.partition(":")[0].rpartition("\n")[2]] = block
    names = ("num_labels", "wav2vec2", "enc", "ctc_lin", "log_softmax", "model")
    return "\n\n".join([*(blocks[n] for n in names), ASR_TAIL]) + hooks


@pytest.fixture
def published(block_run, tmp_path):
    """Publish: the checkpoint folder with a ``hyperparams.yaml``."""
    folder, _, _ = block_run
    target = tmp_path / "published"
    shutil.copytree(folder / "ptq" / "checkpoint", target)
    (target / "hyperparams.yaml").write_text(asr_yaml())
    return target


def load_asr(source, savedir):
    return EncoderASR.from_hparams(source=str(source), savedir=str(savedir))


@pytest.fixture
def speech():
    texts = ("bad face", "cab", "fed be ad")
    sounds = [toy.sound(t, 7 + i, 0.05) for i, t in enumerate(texts)]
    lengths = torch.tensor([len(s) for s in sounds], dtype=torch.float32)
    batch = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    return batch, lengths / batch.shape[1]


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

CHANNELS = "[64, 64, 64, 64, 192]"
SPEAKER_YAML = f"""
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 24

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 24
    channels: {CHANNELS}
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 32
    lin_neurons: 32

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 32
    out_neurons: 40

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
"""
SPEAKER_HOOKS = """
    custom_hooks:
        embedding_model: !name:speechbrain_stablequant.load_quantized
        classifier: !name:speechbrain_stablequant.load_quantized
"""


def voices(count: int, seconds: float = 1.0) -> torch.Tensor:
    """Return sounds with harmonics of different pitch, some noise on top."""
    generator = torch.Generator().manual_seed(count)
    time = torch.arange(int(16000 * seconds)) / 16000
    pitch = 90 + 40 * torch.rand(count, 1, generator=generator)
    wave = sum((2 * torch.pi * k * pitch * time).sin() / k for k in range(1, 9))
    noise = torch.randn(wave.shape, generator=generator)
    return 0.1 * wave + 0.01 * noise


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """Quantize a small ECAPA-TDNN and publish it."""
    torch.manual_seed(3)
    features = Fbank(n_mels=24)
    norm = InputNormalization(norm_type="sentence", std_norm=False)
    model = ECAPA_TDNN(
        24,
        channels=[64, 64, 64, 64, 192],
        attention_channels=32,
        lin_neurons=32,
    )
    classifier = Classifier(32, out_neurons=40)
    model.train()  # so that batch norm has statistics of its own
    lens = torch.ones(6)
    for seed in range(4):
        model(norm(features(voices(6 + seed))[:6], lens), lens)
    model.eval()
    batches = [norm(features(voices(6)), lens)]
    folder = tmp_path_factory.mktemp("speaker") / "published"
    knobs = {"bits": "W4A8", "progress": False}
    result = quantize(model, batches, **knobs)
    assert result.coverage.fraction > 0.99
    save_quantized(model, folder / "embedding_model.ckpt", result.plan)
    with torch.no_grad():
        embeddings = [model(batches[0])]
    result = quantize(classifier, embeddings, **knobs)
    save_quantized(classifier, folder / "classifier.ckpt", result.plan)
    (folder / "hyperparams.yaml").write_text(SPEAKER_YAML + SPEAKER_HOOKS)

    def embed(wavs):
        with torch.no_grad():
            ones = torch.ones(len(wavs))
            return model(norm(features(wavs), ones), ones)

    return folder, embed, classifier


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
