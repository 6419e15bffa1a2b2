"""Distillation of an encoder: the student, what it predicts, and the loss.

DistilHuBERT: Chang et al., 2021, arXiv 2110.01900.
"""

import copy

import torch
import torch.nn.functional as F
from downstream import hidden_size
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.nnet.linear import Linear


def num_hidden_layers(encoder):
    """Returns the number of Transformer layers."""
    return encoder.model.config.num_hidden_layers


def make_student(teacher, num_layers=None, freeze_feature_extractor=False):
    """Copies an encoder, or its front end and its first layers.

    Arguments
    ---------
    teacher : torch.nn.Module
        What ``downstream.load_encoder`` returns, with float weights.
    num_layers : int, optional
        Transformer layers of the student; all by default.
    freeze_feature_extractor : bool
        Leave the convolutions that read the waveform as they are; a step of
        training then takes about half the time.

    Returns
    -------
    student : torch.nn.Module
        Its values are those of the teacher; to be trained.

    Example
    -------
    >>> from downstream import show_hidden_states
    >>> from speechbrain_stablequant.models.huggingface import Wav2Vec2
    >>> teacher = Wav2Vec2({"model_type": "wav2vec2", "num_hidden_layers": 3})
    >>> show_hidden_states(teacher)
    >>> len(make_student(teacher, 2)(torch.randn(1, 4000)))
    3
    """
    deepest = num_hidden_layers(teacher)
    if num_layers is None:
        num_layers = deepest
    if not 1 <= num_layers <= deepest:
        raise ValueError(
            f"student_layers is {num_layers}; the teacher has {deepest}."
        )
    student = copy.deepcopy(teacher)
    del student.model.encoder.layers[num_layers:]
    student.model.config.num_hidden_layers = num_layers
    # A layer that is left out would have no hidden state to compare
    student.model.config.layerdrop = 0.0
    student.freeze = False
    student.requires_grad_(True)
    if freeze_feature_extractor:
        student.model.feature_extractor._freeze_parameters()
    return student


class PredictionHeads(torch.nn.Module):
    """Predicts hidden states of the teacher from the student's last one.

    Only for training: the student is used without them.

    Arguments
    ---------
    teacher : torch.nn.Module
        What is predicted.
    target_layers : list of int, optional
        Its layers, 0 being the input of the first; by default the ends of the
        thirds: 4, 8 and 12 of 12.

    Example
    -------
    >>> from speechbrain_stablequant.models.huggingface import Wav2Vec2
    >>> teacher = Wav2Vec2({"model_type": "wav2vec2"})
    >>> heads = PredictionHeads(teacher)
    >>> heads.target_layers, heads(torch.randn(3, 2, 5, 768)).shape
    ([4, 8, 12], torch.Size([3, 2, 5, 768]))
    """

    def __init__(self, teacher, target_layers=None):
        super().__init__()
        layers = num_hidden_layers(teacher)
        if target_layers is None:
            thirds = {round(layers * part / 3) for part in (1, 2, 3)}
            target_layers = sorted(thirds - {0})
        self.target_layers = check_layers(target_layers, layers)
        width = hidden_size(teacher)
        self.heads = torch.nn.ModuleList(
            Linear(input_size=width, n_neurons=width) for _ in target_layers
        )

    def forward(self, states):
        """Predicts.

        Arguments
        ---------
        states : torch.Tensor
            Hidden states of the student, (layers, batch, time, dim).

        Returns
        -------
        predicted : torch.Tensor
            One for each target layer, (targets, batch, time, dim).
        """
        return torch.stack([head(states[-1]) for head in self.heads])


class SameLayers(torch.nn.Module):
    """Compares each layer of the student with the same one of the teacher.

    Arguments
    ---------
    teacher : torch.nn.Module
        What is imitated, by a student of as many layers.
    target_layers : list of int, optional
        Layers, 0 being the input of the first; all by default, since a task
        mixes all of them.
    """

    def __init__(self, teacher, target_layers=None):
        super().__init__()
        layers = num_hidden_layers(teacher)
        if target_layers is None:
            target_layers = range(layers + 1)
        self.target_layers = check_layers(target_layers, layers)

    def forward(self, states):
        """Returns the states of the target layers."""
        return states[self.target_layers]


def check_layers(target_layers, layers):
    """Returns layers as a list, or says which of them there are."""
    target_layers = list(target_layers)
    if not target_layers or not set(target_layers) <= set(range(layers + 1)):
        raise ValueError(
            f"target_layers is {target_layers}; the teacher has hidden states "
            f"0 (input of the first layer) to {layers}."
        )
    return target_layers


def hidden_state_loss(predicted, target, wav_lens, cosine_weight=1.0):
    """Mean absolute difference, and the cosine's negative log-sigmoid.

    Arguments
    ---------
    predicted : torch.Tensor
        Of shape (layers, batch, time, dim).
    target : torch.Tensor
        Likewise.
    wav_lens : torch.Tensor
        Relative lengths, (batch,).
    cosine_weight : float
        Weight of the second term.

    Returns
    -------
    losses : torch.Tensor
        Of shape (layers, batch), each a mean over the frames of an utterance.

    Example
    -------
    >>> states = torch.ones(2, 1, 5, 4)
    >>> hidden_state_loss(states, states, torch.ones(1)).shape
    torch.Size([2, 1])
    """
    predicted, target = predicted.float(), target.float()
    losses = (predicted - target).abs().mean(-1)
    cosine = F.cosine_similarity(predicted, target, dim=-1)
    losses = losses - cosine_weight * F.logsigmoid(cosine)
    frames = losses.shape[-1]
    lengths = (wav_lens * frames).round().clamp(min=1)
    mask = length_to_mask(lengths, max_len=frames).to(losses)
    return (losses * mask).sum(-1) / mask.sum(-1)
