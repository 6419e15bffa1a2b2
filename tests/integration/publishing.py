"""Published folders: a quantized recognizer and speaker model with YAML."""

import shutil
from pathlib import Path

import torch
from speechbrain.inference.ASR import EncoderASR
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier
from speechbrain.processing.features import InputNormalization

from speechbrain_stablequant import quantize, save_quantized
from tests.integration import toy

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


def publish_asr(experiment: Path, target: Path) -> Path:
    """Publish: the checkpoint folder with a ``hyperparams.yaml``."""
    shutil.copytree(experiment / "ptq" / "checkpoint", target)
    (target / "hyperparams.yaml").write_text(asr_yaml())
    return target


def load_asr(source, savedir):
    return EncoderASR.from_hparams(source=str(source), savedir=str(savedir))


def speech():
    """Return a batch of utterances and their relative lengths."""
    texts = ("bad face", "cab", "fed be ad")
    sounds = [toy.sound(t, 7 + i, 0.05) for i, t in enumerate(texts)]
    lengths = torch.tensor([len(s) for s in sounds], dtype=torch.float32)
    batch = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    return batch, lengths / batch.shape[1]


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


def publish_speaker(folder: Path):
    """Quantize a small ECAPA-TDNN and publish it.

    Returns
    -------
    What embeds waveforms in memory, and the classifier.
    """
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

    return embed, classifier
