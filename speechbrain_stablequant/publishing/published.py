"""A published folder: which interface loads it, and loading it."""

import importlib
from pathlib import Path
from typing import Any, Optional, Union

from speechbrain_stablequant.artifacts.hyperparams import Definitions
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces import (
    INTERFACES,
    Interface,
    interface,
)

__all__ = ["interface_of", "load"]

YAML = "hyperparams.yaml"
# What the YAML must have: modules, and names at its top level. The first counts.
_SIGNS = (
    ("LanguageModel", {"lm"}, set()),
    ("EncoderDecoderASR", {"encoder", "decoder"}, {"tokenizer"}),
    ("EncoderASR", {"encoder"}, {"tokenizer", "decoding_function"}),
    ("WaveformEncoder", {"encoder"}, set()),
    ("EncoderClassifier", {"embedding_model", "classifier"}, set()),
    ("SpeakerRecognition", {"embedding_model"}, set()),
)


def interface_of(
    source: Union[str, Path], savedir: Optional[str] = None
) -> Interface:
    """Find out which interface loads a folder or a hub repository.

    Arguments
    ---------
    source : str or Path
        Folder, YAML file, or ``user/name``.
    savedir : str, optional
        Where a file fetched from the hub goes; by default the hub's cache.

    Returns
    -------
    Interface

    Raises
    ------
    PublishError
        If there is no ``hyperparams.yaml``, or none of the interfaces here
        loads it.
    """
    path = Path(source) / YAML
    if Path(source).is_file():
        path = Path(source)
    elif not Path(source).is_dir():
        path = _fetched(str(source), savedir)
    elif not path.is_file():
        raise PublishError(
            f"{source} has no {YAML}: give a published folder. 'stablequant "
            "publish EXPERIMENT' makes one, in EXPERIMENT/ptq/hub."
        )
    definitions = Definitions.load(path)
    modules, names = set(definitions.entries("modules")), set(definitions.nodes)
    for name, needed, top in _SIGNS:
        if needed <= modules and top <= names:
            return interface(name)
    raise PublishError(
        f"{path} has the modules {', '.join(sorted(modules)) or '(none)'}: none "
        f"of {', '.join(INTERFACES)} loads these."
    )


def _fetched(source: str, savedir: Optional[str]) -> Path:
    """Fetch the YAML of a repository."""
    from huggingface_hub import hf_hub_download

    if Path(source).exists() or source.count("/") != 1:
        raise PublishError(
            f"{source} is neither a folder nor the name of a repository on the "
            "hub (user/name)."
        )
    try:
        return Path(hf_hub_download(source, YAML, cache_dir=savedir))
    except Exception as err:  # of the hub, the network, the cache
        lines = str(err).strip().splitlines() or ["no reason given"]
        raise PublishError(
            f"{source} is not a folder here, and {YAML} cannot be fetched from "
            f"the hub: {lines[0]}"
        ) from err


def load(source: str, savedir: Optional[str] = None) -> Any:
    """Load a published model through the toolkit's interface for it.

    Arguments
    ---------
    source : str
        Folder, or ``user/name`` on the hub.
    savedir : str, optional
        Where the toolkit puts links to the files.

    Returns
    -------
    speechbrain.inference.interfaces.Pretrained

    Raises
    ------
    PublishError
        If no interface is known that loads it.
    StableQuantError
        If the quantized files are damaged or do not fit.
    """
    known = interface_of(source)
    cls = getattr(importlib.import_module(known.module), known.name)
    kwargs = {} if savedir is None else {"savedir": savedir}
    return cls.from_hparams(source=str(source), **kwargs)
