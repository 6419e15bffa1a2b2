"""What the tasks share: a frozen encoder and its layers.

The protocol is that of SUPERB (Yang et al., 2021, arXiv 2105.01051): the
encoder is never trained, a task learns a weighted sum of its hidden states
and a small head.

Example
-------
In the YAML of a task:

.. code-block:: yaml

    encoder: !apply:downstream.load_encoder
        source: !ref <encoder_source>
    features: !new:downstream.FrozenFeatures
        encoder: !ref <encoder>
        cache_features: True
    weighted_sum: !new:downstream.WeightedSum
        encoder: !ref <encoder>
"""

import random
from itertools import chain
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.inference.encoders import WaveformEncoder

# SpeechBrain's modules and their classes; other types have no wrapper
WRAPPERS = {
    "wav2vec2": "Wav2Vec2",
    "wav2vec2-conformer": "Wav2Vec2",
    "data2vec-audio": "Wav2Vec2",
    "hubert": "HuBERT",
    "wavlm": "WavLM",
}


def load_encoder(source, save_path=None, device="cpu"):
    """Loads an encoder, float or quantized, to be used frozen.

    Arguments
    ---------
    source : str
        A folder with a ``hyperparams.yaml`` for SpeechBrain's
        ``WaveformEncoder``, such as ``publish_encoder.py`` writes; or a
        folder or hub name of transformers (wav2vec 2.0, HuBERT, WavLM).
    save_path : str, optional
        Where files from the hub go; by default transformers' own cache.
    device : str
        Where the encoder goes.

    Returns
    -------
    encoder : torch.nn.Module
        SpeechBrain's wrapper. Called with waveforms (batch, samples) and
        relative lengths it returns all hidden states, (layers, batch, time,
        dim), the input of the first layer included, without gradients.

    Raises
    ------
    FileNotFoundError
        If the folder is none of these.
    TypeError
        If the model has no hidden states to give.
    """
    folder = Path(source)
    if (folder / "hyperparams.yaml").is_file():
        # Without a savedir nothing is copied or linked elsewhere
        encoder = WaveformEncoder.from_hparams(
            source=str(folder), run_opts={"device": device}
        ).mods.encoder
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"encoder_source {source} has neither hyperparams.yaml nor "
            "config.json. Give a folder made by publish_encoder.py, or one "
            "of transformers."
        )
    else:
        encoder = _load_transformers(source, save_path)
    show_hidden_states(encoder)
    encoder.freeze = True
    return encoder.to(device).eval().requires_grad_(False)


def show_hidden_states(encoder):
    """Makes a wrapper of SpeechBrain return all hidden states, as they are.

    Arguments
    ---------
    encoder : torch.nn.Module
        SpeechBrain's wrapper; changed in place.

    Raises
    ------
    TypeError
        If it has no hidden states to give.
    """
    if not hasattr(encoder, "output_all_hiddens"):
        raise TypeError(
            f"The encoder is a {type(encoder).__name__}, which has no "
            "output_all_hiddens: expected SpeechBrain's Wav2Vec2, HuBERT or "
            "WavLM."
        )
    encoder.output_all_hiddens = True
    encoder.output_norm = False
    if _end_with_output not in encoder.model._forward_hooks.values():
        encoder.model.register_forward_hook(_end_with_output)
    # transformers 5 hooks its layers at the first call. That must come before
    # the model is copied or quantized, after which it would hook them again
    device = next(chain(encoder.parameters(), encoder.buffers())).device
    training = encoder.training
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 1600, device=device))
    encoder.train(training)


def _end_with_output(model, args, output):
    """Lets the hidden states end with the output of the encoder.

    With ``do_stable_layer_norm`` a layer norm follows the last layer.
    transformers 5 leaves it out of the last hidden state, 4 does not.
    """
    if output.hidden_states is not None:
        expected = model.config.num_hidden_layers + 1
        if len(output.hidden_states) != expected:
            raise RuntimeError(
                f"{len(output.hidden_states)} hidden states instead of "
                f"{expected}: set layerdrop to 0, or load the encoder anew."
            )
        output.hidden_states = (
            *output.hidden_states[:-1],
            output.last_hidden_state,
        )
    return output


def _load_transformers(source, save_path):
    """Loads pretrained weights with SpeechBrain's wrapper for their type."""
    # Optional dependencies: a published folder may hold another encoder
    from huggingface_hub.constants import HF_HUB_CACHE
    from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
    from transformers import AutoConfig

    save_path = HF_HUB_CACHE if save_path is None else save_path
    model_type = AutoConfig.from_pretrained(
        source, cache_dir=save_path
    ).model_type
    name = wrapper_name(model_type, source)
    module = {"Wav2Vec2": wav2vec2, "HuBERT": hubert, "WavLM": wavlm}[name]
    return getattr(module, name)(source, save_path, freeze=True)


def wrapper_name(model_type, source):
    """Returns the class of SpeechBrain that wraps a type of transformers.

    Arguments
    ---------
    model_type : str
        As in ``config.json``.
    source : str
        Where that came from, for the message of the error.

    Returns
    -------
    name : str
        ``Wav2Vec2``, ``HuBERT`` or ``WavLM``.

    Example
    -------
    >>> wrapper_name("hubert", "facebook/hubert-base-ls960")
    'HuBERT'
    """
    if model_type not in WRAPPERS:
        raise ValueError(
            f"{source} is of type {model_type}; SpeechBrain wraps "
            f"{', '.join(WRAPPERS)}."
        )
    return WRAPPERS[model_type]


def hidden_size(encoder):
    """Returns the width of the hidden states, for the YAML of a head."""
    return encoder.model.config.hidden_size


class FrozenFeatures:
    """Hidden states of recordings, each computed alone and only once.

    A frozen encoder gives the same hidden states in every epoch when nothing
    is augmented. Each recording is encoded by itself: in a padded batch the
    normalization of the waveform, and of some front ends, would depend on
    what else is in it.

    Arguments
    ---------
    encoder : torch.nn.Module
        What ``load_encoder`` returns.
    pooling : str or int, optional
        ``mean``: only the mean over time of each layer is returned. A head
        that is linear up to its mean pooling cannot tell the difference, and
        the cache is smaller by the number of frames. A number: the means of
        so many frames.
    cache_features : bool
        Keep them in memory, as float16. A second of audio (50 frames) takes
        ``100 * layers * dim`` bytes, with pooling a recording takes ``2 *
        layers * dim``: 20 kB of wav2vec 2.0 base, but 1 MB a second without
        pooling, 360 GB for 100 hours; of the small encoder of the Speech
        Commands recipe 96 kB a second.
    max_seconds : float, optional
        Recordings are cut to this.
    sample_rate : int
        Of the recordings, in Hz.

    Example
    -------
    >>> from speechbrain_stablequant.models.huggingface import Wav2Vec2
    >>> encoder = Wav2Vec2({"model_type": "wav2vec2", "num_hidden_layers": 1})
    >>> show_hidden_states(encoder)
    >>> FrozenFeatures(encoder).encode(torch.randn(4000)).shape
    torch.Size([12, 2, 768])
    """

    def __init__(
        self,
        encoder,
        pooling=None,
        cache_features=True,
        max_seconds=None,
        sample_rate=16000,
    ):
        if pooling not in (None, "mean") and not (
            type(pooling) is int and pooling > 0
        ):
            raise ValueError(
                f"pooling is {pooling!r}: use mean, a number of frames or null."
            )
        self.encoder, self.pooling = encoder, pooling
        self.cache = {} if cache_features else None
        self.max_samples = None
        if max_seconds is not None:
            self.max_samples = int(max_seconds * sample_rate)

    def __call__(self, wav):
        """Returns the hidden states of a recording.

        Arguments
        ---------
        wav : str
            Its file.

        Returns
        -------
        feats : torch.Tensor
            Of shape (time, layers, dim), on the CPU; float16 with a cache.
        """
        if self.cache is None:
            return self.encode(sb.dataio.dataio.read_audio(wav))
        if wav not in self.cache:
            if torch.utils.data.get_worker_info() is not None:
                raise ValueError(
                    "cache_features is True: what worker processes encode is "
                    "lost with them. Set num_workers: 0 in the dataloader "
                    "options, or cache_features: False."
                )
            feats = self.encode(sb.dataio.dataio.read_audio(wav)).half()
            if not feats.isfinite().all():
                raise ValueError(
                    f"Hidden states of {wav} do not fit into float16; set "
                    "cache_features: False."
                )
            self.cache[wav] = feats
        return self.cache[wav]

    @torch.no_grad()
    def encode(self, signal):
        """Encodes one recording.

        Arguments
        ---------
        signal : torch.Tensor
            Of shape (samples,).

        Returns
        -------
        feats : torch.Tensor
            Of shape (time, layers, dim), on the CPU.
        """
        state = chain(self.encoder.parameters(), self.encoder.buffers())
        device = next(state).device
        signal = signal[: self.max_samples].unsqueeze(0).to(device)
        hidden = self.encoder(signal, torch.ones(1, device=device))
        hidden = hidden.squeeze(1).transpose(0, 1)
        if self.pooling is not None:
            frames = len(hidden) if self.pooling == "mean" else self.pooling
            parts = hidden.split(frames)
            hidden = torch.stack([part.mean(0) for part in parts])
        return hidden.float().cpu()

    def add_to(self, datasets):
        """Adds the item ``feats``, made from ``wav``, to data sets.

        Arguments
        ---------
        datasets : list of DynamicItemDataset
            With the file of each recording as ``wav``.
        """

        @sb.utils.data_pipeline.takes("wav")
        @sb.utils.data_pipeline.provides("feats")
        def feats_pipeline(wav):
            return self(wav)

        sb.dataio.dataset.add_dynamic_item(datasets, feats_pipeline)


class WeightedSum(torch.nn.Module):
    """A learned mixture of hidden states, equal weights at first.

    Arguments
    ---------
    encoder : torch.nn.Module
        What ``load_encoder`` returns; only its number of layers is used.

    Example
    -------
    >>> from speechbrain_stablequant.models.huggingface import Wav2Vec2
    >>> encoder = Wav2Vec2({"model_type": "wav2vec2", "num_hidden_layers": 1})
    >>> WeightedSum(encoder)(torch.ones(3, 12, 2, 768)).shape
    torch.Size([3, 12, 768])
    """

    def __init__(self, encoder):
        super().__init__()
        # The input of the first layer counts as well
        layers = encoder.model.config.num_hidden_layers + 1
        self.weights = torch.nn.Parameter(torch.zeros(layers))

    def forward(self, feats):
        """Mixes hidden states.

        Arguments
        ---------
        feats : torch.Tensor
            Of shape (batch, time, layers, dim).

        Returns
        -------
        mixed : torch.Tensor
            Of shape (batch, time, dim).
        """
        # float16 out of the cache, and not exact enough for the sum
        return torch.einsum(
            "btld,l->btd", feats.float(), self.weights.float().softmax(0)
        )


def load_splits(hparams):
    """Reads the CSV files of a task as data sets, with the item ``feats``.

    Arguments
    ---------
    hparams : dict
        ``train_csv``, ``valid_csv``, ``test_csv``, ``features`` and ``seed``;
        with ``max_train_utterances`` and the like so many are drawn.

    Returns
    -------
    datasets : list of DynamicItemDataset
        For training, validation and test.
    """
    datasets = []
    for split in ("train", "valid", "test"):
        rows = sb.dataio.dataio.load_data_csv(hparams[f"{split}_csv"])
        limit = hparams.get(f"max_{split}_utterances")
        if limit is not None and limit < len(rows):
            rng = random.Random(hparams["seed"])
            rows = {utt: rows[utt] for utt in rng.sample(sorted(rows), limit)}
        datasets.append(sb.dataio.dataset.DynamicItemDataset(rows))
    hparams["features"].add_to(datasets)
    return datasets
