"""The models of the runtime benchmark, at full size with random weights."""

from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch
import transformers
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["MODELS", "BenchmarkModel", "count_macs"]

SAMPLE_RATE = 16000
FRAME_RATE = 100
NUM_MELS = 80
VOCABULARY = 5000

TINY_ENCODER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# Both large encoders and their kin: layer norm in every convolution layer,
# and before, not after, attention and feed-forward.
STABLE = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


@dataclass(frozen=True)
class BenchmarkModel:
    """A model and what its inputs look like.

    Arguments
    ---------
    build : callable
        ``build(tiny)`` returns the module: one tensor in, one tensor out.
    unit : str
        What speed is counted in: ``second`` (of audio) or ``token``.
    make_input : callable
        ``make_input(generator, length)`` returns an input without batch
        dimension, ``length`` in units.
    """

    build: Callable[[bool], nn.Module]
    unit: str
    make_input: Callable[[np.random.Generator, float], np.ndarray]


class HiddenStates(nn.Module):
    """An encoder of `transformers` that returns its last hidden states."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, wavs):
        """Return hidden states.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms, (batch, samples). There is no mask: padding is
            computed like speech, the same for all candidates.
        """
        return self.encoder(wavs).last_hidden_state


def _encoder(model: type, config: type, **sizes):
    def build(tiny: bool) -> nn.Module:
        chosen = {**sizes, **TINY_ENCODER} if tiny else sizes
        return HiddenStates(model(config(**chosen)))

    return build


def _ecapa(tiny: bool) -> nn.Module:
    width = 32 if tiny else 1024
    return ECAPA_TDNN(
        NUM_MELS,
        channels=[width] * 4 + [3 * width],
        attention_channels=8 if tiny else 128,
        lin_neurons=192,
    )


def _language_model(tiny: bool) -> nn.Module:
    return TransformerLM(
        VOCABULARY,
        d_model=32 if tiny else 768,
        nhead=2 if tiny else 12,
        num_encoder_layers=2 if tiny else 12,
        d_ffn=64 if tiny else 3072,
        activation=nn.GELU,
    )


def _waveform(generator, seconds):
    samples = round(seconds * SAMPLE_RATE)
    return 0.1 * generator.standard_normal(samples, dtype=np.float32)


def _features(generator, seconds):
    shape = (round(seconds * FRAME_RATE), NUM_MELS)
    return generator.standard_normal(shape, dtype=np.float32)


def _tokens(generator, length):
    return generator.integers(1, VOCABULARY, int(length), dtype=np.int64)


MODELS = {
    "wav2vec2-base": BenchmarkModel(
        _encoder(transformers.Wav2Vec2Model, transformers.Wav2Vec2Config),
        "second",
        _waveform,
    ),
    "hubert-large": BenchmarkModel(
        _encoder(
            transformers.HubertModel,
            transformers.HubertConfig,
            **LARGE,
            **STABLE,
        ),
        "second",
        _waveform,
    ),
    "wavlm-base": BenchmarkModel(
        _encoder(transformers.WavLMModel, transformers.WavLMConfig),
        "second",
        _waveform,
    ),
    "ecapa-1024": BenchmarkModel(_ecapa, "second", _features),
    "transformer-lm": BenchmarkModel(_language_model, "token", _tokens),
}


def count_macs(module: nn.Module, array: np.ndarray) -> int:
    """Count multiply-accumulates of linear and convolution layers.

    Matrix products of weights only: those of attention, of a few percent,
    appear as different operations in different models.

    Arguments
    ---------
    module : torch.nn.Module
        The float module, on the meta device: nothing is computed.
    array : numpy.ndarray
        Its input.

    Returns
    -------
    int
        Multiply-accumulates of one call.

    Example
    -------
    >>> with torch.device("meta"):
    ...     layer = nn.Linear(8, 16)
    >>> count_macs(layer, np.ones((2, 3, 8), np.float32))
    768
    """
    kinds = (torch.ops.aten.mm, torch.ops.aten.addmm)
    kinds += (torch.ops.aten.convolution,)
    tokens = torch.from_numpy(array).to("meta")
    # With gradients: the fused attention of inference would not be counted.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        module(tokens)
    counts = counter.get_flop_counts()["Global"]
    return sum(counts.get(kind, 0) for kind in kinds) // 2
