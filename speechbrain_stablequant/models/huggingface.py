"""SpeechBrain's self-supervised encoders, built from their configuration.

SpeechBrain's own wrappers always fetch the pretrained float weights. They are
not needed to train an architecture from scratch, nor to load a quantized
checkpoint, whose weights replace them. The classes here take the same
arguments, have the same ``forward``, build the architecture from a
configuration and load no weights.

Example
-------
In a YAML file, the configuration may take the place of the model's name:

.. code-block:: yaml

    wav2vec2: !new:speechbrain_stablequant.models.Wav2Vec2
        source:
            model_type: wav2vec2
            hidden_size: 192
            num_hidden_layers: 4
            do_normalize: True
        output_norm: True
"""

import json
import tempfile
from pathlib import Path

try:
    from speechbrain.integrations.huggingface import hubert, wav2vec2, wavlm
    from transformers import CONFIG_MAPPING, Wav2Vec2FeatureExtractor
except ImportError as err:
    raise ImportError(
        "speechbrain_stablequant.models.huggingface needs the package "
        "transformers: pip install transformers"
    ) from err

from speechbrain_stablequant.core.options import check_names
from speechbrain_stablequant.errors import KnobError

FAMILIES = (
    "wav2vec2",
    "hubert",
    "wavlm",
    "wav2vec2-conformer",
    "data2vec-audio",
)


class ConfigOnly:
    """Mixin: builds the architecture from a configuration, loads no weights.

    A class lists it before a wrapper derived from SpeechBrain's
    ``HFTransformersInterface``; it replaces the step that fetches weights.

    Arguments
    ---------
    source : dict or str
        The configuration itself (``model_type`` and whatever differs from the
        defaults of that type, and optionally ``do_normalize``: whether the
        waveform is normalized), or a local folder or a hub name, of which
        only ``config.json`` and ``preprocessor_config.json`` are read.
    save_path : str
        Where files fetched from the hub go. Unused with a dict or a folder.
    **kwargs
        Arguments of SpeechBrain's wrapper.
    """

    def __init__(self, source, save_path=None, **kwargs):
        if not isinstance(source, dict):
            super().__init__(source, save_path, **kwargs)
            return
        # SpeechBrain reads the configuration from files only.
        with tempfile.TemporaryDirectory() as folder:
            write_config(source, folder)
            super().__init__(folder, folder, **kwargs)
        self.config._name_or_path = ""

    def _from_pretrained(
        self, source, save_path, cache_dir, device=None, **kwargs
    ):
        """Build the model with random weights where SpeechBrain would fetch."""
        # Like from_pretrained, from_config lets transformers pick the attention
        # (SDPA if the architecture has it).
        self.model = self.auto_class.from_config(self.config, **kwargs)
        if device is not None:
            self.model.to(device)


def write_config(config, folder):
    """Write the two JSON files from which transformers builds a model.

    Arguments
    ---------
    config : dict
        ``model_type``, whatever differs from the defaults of that type, and
        optionally ``do_normalize``.
    folder : str
        Where the files go.

    Example
    -------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_config({"model_type": "hubert"}, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['config.json', 'preprocessor_config.json']
    """
    config = dict(config)
    do_normalize = config.pop("do_normalize", True)
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise KnobError(
            f"model_type is {model_type!r}; transformers must know it, for "
            f"example {', '.join(FAMILIES)}."
        )
    # transformers keeps a misspelt key silently and uses the default.
    known = CONFIG_MAPPING[model_type]().to_dict()
    check_names(model_type, config, known)
    Path(folder, "config.json").write_text(json.dumps(config), "utf-8")
    Wav2Vec2FeatureExtractor(
        do_normalize=do_normalize, return_attention_mask=True
    ).save_pretrained(folder)


class Wav2Vec2(ConfigOnly, wav2vec2.Wav2Vec2):
    """SpeechBrain's ``Wav2Vec2`` without weights; arguments of `ConfigOnly`.

    Example
    -------
    >>> import torch
    >>> model = Wav2Vec2(
    ...     {
    ...         "model_type": "wav2vec2",
    ...         "conv_dim": [16] * 7,
    ...         "hidden_size": 32,
    ...         "num_hidden_layers": 2,
    ...         "num_attention_heads": 4,
    ...         "intermediate_size": 64,
    ...         "num_conv_pos_embeddings": 16,
    ...         "num_conv_pos_embedding_groups": 4,
    ...     }
    ... )
    >>> model(torch.randn(2, 4000), torch.ones(2)).shape
    torch.Size([2, 12, 32])
    """


class HuBERT(ConfigOnly, hubert.HuBERT):
    """SpeechBrain's ``HuBERT`` without weights; arguments of `ConfigOnly`.

    Example
    -------
    >>> model = HuBERT(
    ...     {
    ...         "model_type": "hubert",
    ...         "hidden_size": 32,
    ...         "num_hidden_layers": 1,
    ...         "num_attention_heads": 4,
    ...     }
    ... )
    >>> type(model.model).__name__
    'HubertModel'
    """


class WavLM(ConfigOnly, wavlm.WavLM):
    """SpeechBrain's ``WavLM`` without weights; arguments of `ConfigOnly`.

    Example
    -------
    >>> model = WavLM(
    ...     {
    ...         "model_type": "wavlm",
    ...         "hidden_size": 32,
    ...         "num_hidden_layers": 1,
    ...         "num_attention_heads": 4,
    ...     }
    ... )
    >>> type(model.model).__name__
    'WavLMModel'
    """
