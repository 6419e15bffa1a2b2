"""Self-supervised encoders: the architecture without the float weights."""

import contextlib
import json
from typing import Any, Optional

import torch
from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import (
    arguments,
    class_name,
    inline,
    new,
    plain,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import (
    Interface,
    Needs,
    audio,
)
from speechbrain_stablequant.publishing.inventory import ENCODERS, Recipe

__all__ = ["WAVEFORM_ENCODER", "config_of", "without_weights"]

# What matters in training only, or is a path
_LEFT_OUT = (
    "source",
    "save_path",
    "freeze",
    "freeze_feature_extractor",
    "apply_spec_augment",
)


def config_of(encoder) -> dict[str, Any]:
    """Return the architecture of a wrapper, as a config-only one takes it.

    Arguments
    ---------
    encoder : torch.nn.Module
        SpeechBrain's wrapper of wav2vec 2.0, HuBERT or WavLM.

    Returns
    -------
    dict
        ``model_type``, ``do_normalize`` and what differs from the defaults.
    """
    from transformers import CONFIG_MAPPING

    config = json.loads(encoder.model.config.to_json_string(use_diff=True))
    known = CONFIG_MAPPING[config["model_type"]]().to_dict()
    # What says where it came from, not what it is
    about = (
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
    )
    config = {
        key: value
        for key, value in config.items()
        if key in known
        and key not in about
        and (value != known[key] or key == "model_type")
    }
    return {**config, "do_normalize": bool(encoder.normalize_wav)}


def without_weights(recipe: Recipe) -> tuple[dict[str, Node], Optional[str]]:
    """Return encoders that are built from their configuration.

    SpeechBrain's wrappers fetch float weights, although quantized ones are to
    replace them.

    Returns
    -------
    changes : dict
        Nodes by the name at the top level of the YAML.
    base_model : str, optional
        The pretrained model, if it has the name of one on a hub.
    """
    changes, base_model = {}, None
    for name, node in recipe.definitions.values():
        wrapper = class_name(node).rpartition(".")[2]
        if wrapper not in ENCODERS:
            continue
        source = plain(arguments(node)["source"])
        config = source
        if isinstance(source, str):
            config = _fetched_config(recipe, wrapper, source, node)
            if recipe.locate(source) is None:
                base_model = source
        kept = {
            key: value
            for key, value in arguments(node).items()
            if key not in _LEFT_OUT
        }
        changes[name] = new(
            f"speechbrain_stablequant.models.{wrapper}",
            source=inline(config),
            **kept,
        )
    return changes, base_model


def _fetched_config(recipe: Recipe, wrapper: str, source: str, node: Node):
    """Return the configuration of a pretrained model, or its hub name."""
    from speechbrain_stablequant.models import huggingface

    folder = arguments(node).get("save_path")
    cache = None if folder is None else recipe.locate(str(plain(folder)))
    local = recipe.locate(source)
    wrapper_class = getattr(huggingface, wrapper)
    with contextlib.suppress(OSError, ValueError):
        place = source if local is None else str(local)
        return config_of(
            wrapper_class(place, None if cache is None else str(cache))
        )
    if local is not None or source.startswith(("/", ".", "~")):
        raise PublishError(
            f"The configuration of the encoder could not be read from "
            f"{source}: its config.json is needed to publish the model."
        )
    return source  # its config.json is fetched when the model is loaded


def _fits(recipe: Recipe) -> bool:
    return recipe.encoder is not None and len(recipe.modules) == 1


def _needs(recipe: Recipe) -> Needs:
    name = recipe.encoder
    if name is None:
        raise PublishError(
            "WaveformEncoder needs a module that is a wav2vec 2.0, HuBERT or "
            f"WavLM wrapper; {recipe.definitions.source} has none."
        )
    node = recipe.modules[name]
    if not any(recipe.object(file) is node for file in recipe.files):
        raise PublishError(
            f"{recipe.experiment.ptq / 'checkpoint'} has no file of {name}: the "
            "encoder is part of another file there and cannot be published "
            "alone."
        )
    return Needs({}, {"encoder": recipe.refer(name)})


def _encode(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    states = model.encode_batch(audio(model, item), torch.ones(1))
    return {"shape": list(states.shape), "norm": float(states.norm())}


WAVEFORM_ENCODER = Interface(
    name="WaveformEncoder",
    module="speechbrain.inference.encoders",
    task="feature-extraction",
    title="Self-supervised speech encoder",
    fits=_fits,
    needs=_needs,
    run=_encode,
    call='states = model.encode_file("{audio}")',
    modules=["encoder"],
    no_metric="hidden states alone have no metric",
    left_out=lambda recipe: [
        "the test was of a model that the encoder is a part of"
    ],
)
