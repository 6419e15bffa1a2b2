"""A published folder: which interface loads it, and loading it."""

import importlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import torch
from speechbrain.dataio import audio_io

from speechbrain_stablequant.artifacts.experiment import is_published
from speechbrain_stablequant.artifacts.hyperparams import Definitions
from speechbrain_stablequant.errors import (
    PublishError,
    SourceError,
    StableQuantError,
)
from speechbrain_stablequant.publishing.interfaces import (
    INTERFACES,
    Interface,
    recognize,
)

__all__ = [
    "LoadedModel",
    "interface_of",
    "load_model",
    "load_published",
    "published_place",
    "read_audio",
]

YAML = "hyperparams.yaml"


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
    path = Path(source)
    if path.is_dir():
        path = path / YAML
        if not path.is_file():
            raise PublishError(
                f"{source} has no {YAML}: give a published folder. 'stablequant "
                "publish EXPERIMENT' makes one, in EXPERIMENT/ptq/hub."
            )
    elif not path.is_file():
        path = _fetched(str(source), savedir)
    definitions = Definitions.load(path)
    modules = definitions.entries("modules")
    found = recognize(modules, definitions.nodes)
    if found is None:
        raise PublishError(
            f"{path} has the modules {', '.join(sorted(modules)) or '(none)'}: "
            f"none of {', '.join(INTERFACES)} loads these."
        )
    return found


def _fetched(source: str, savedir: Optional[str]) -> Path:
    """Fetch the YAML of a repository."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, YAML, cache_dir=savedir))
    except Exception as err:  # of the hub, the network, the cache
        lines = str(err).strip().splitlines() or ["no reason given"]
        raise PublishError(
            f"{source} is not a folder here, and as the name of a repository "
            f"(user/name), its {YAML} cannot be fetched from the hub: {lines[0]}"
        ) from err


def load_published(
    source: str,
    savedir: Optional[str] = None,
    interface: Optional[Interface] = None,
) -> Any:
    """Load a published model through SpeechBrain's interface for it.

    Arguments
    ---------
    source : str
        Folder, or ``user/name`` on the hub.
    savedir : str, optional
        Where SpeechBrain puts links to the files.
    interface : Interface, optional
        By default the one that fits its ``hyperparams.yaml``.

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
    known = interface or interface_of(source)
    cls = getattr(importlib.import_module(known.module), known.name)
    kwargs = {} if savedir is None else {"savedir": savedir}
    return cls.from_hparams(source=str(source), **kwargs)


SHORTEST_SECONDS = 0.1  # less is not even one frame of an encoder


@dataclass
class LoadedModel:
    """A stock interface that holds a quantized model.

    Arguments
    ---------
    interface : speechbrain.inference.interfaces.Pretrained
        The interface.
    name : str
        Its class.
    place : str
        Folder or hub name it was loaded from.
    seconds : float
        How long that took.
    """

    interface: Any
    name: str
    place: str
    seconds: float

    @property
    def takes_audio(self) -> bool:
        """Whether the model takes audio."""
        return hasattr(self.interface, "audio_normalizer") and any(
            hasattr(self.interface, name)
            for name in ("transcribe_batch", "encode_batch")
        )

    @property
    def sample_rate(self) -> int:
        """Sampling rate of the model, in Hz."""
        return self.interface.audio_normalizer.sample_rate

    @torch.no_grad()
    def run(self, wavs, lens) -> list[Union[str, torch.Tensor]]:
        """Return a transcript or an embedding for each utterance."""
        if hasattr(self.interface, "transcribe_batch"):
            found = self.interface.transcribe_batch(wavs, lens)[0]
            return [w if isinstance(w, str) else " ".join(w) for w in found]
        vectors = self.interface.encode_batch(wavs, lens)
        return [vector.flatten().clone() for vector in vectors]

    @torch.no_grad()
    def read(self, tokens: torch.Tensor) -> None:
        """Run a language model on tokens, (batch, time)."""
        self.interface.mods.lm(tokens)


def load_model(source: str) -> LoadedModel:
    """Load a published folder through its interface.

    Arguments
    ---------
    source : str
        The folder, its name on the hub, or an experiment that was published
        into ``ptq/hub``.

    Raises
    ------
    SourceError
        If it is not such a folder, or cannot be loaded.
    """
    place = published_place(source)
    known = interface_of(place)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as savedir:
        try:
            model = load_published(place, savedir, known)
        except StableQuantError:
            raise
        except Exception as err:  # of any class that the YAML names
            raise SourceError(
                f"{place} cannot be loaded with {known.name}: "
                f"{type(err).__name__}: {' '.join(str(err).split())[:400]}"
            ) from err
    model.eval()
    return LoadedModel(model, known.name, place, time.perf_counter() - start)


def published_place(source: str) -> str:
    """Return a published folder, or what may be a name on the hub.

    Arguments
    ---------
    source : str
        See `load_model`.

    Raises
    ------
    SourceError
        If it is a folder or file, and nothing is published there.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return source
    for folder in (path, path / "hub", path / "ptq" / "hub"):
        if folder.is_dir() and is_published(folder):
            return str(folder.resolve())
    raise SourceError(
        f"{source} is not a published folder: there is no hyperparams.yaml with "
        "quantized *.ckpt beside it, nor in its ptq/hub. If it is an "
        f"experiment, publish it first: stablequant publish {source}."
    )


def read_audio(model: LoadedModel, path: str) -> torch.Tensor:
    """Read a file through SpeechBrain, at the model's rate, one channel.

    Raises
    ------
    SourceError
        If the file is missing, too short, no audio, or has samples that are
        not finite numbers.
    """
    if Path(path).is_dir():
        raise SourceError(f"{path} is a folder: name the audio files in it.")
    if not Path(path).is_file():
        raise SourceError(f"{path} is not there: no such audio file.")
    try:
        signal, rate = audio_io.load(str(path), channels_first=False)
        if signal.numel():  # resampling nothing fails
            signal = model.interface.audio_normalizer(signal, rate)
    except Exception as err:  # of the reader, by format
        raise SourceError(
            f"{path} cannot be read as audio: "
            f"{' '.join(str(err).split())[:200]}"
        ) from err
    seconds = signal.numel() / model.sample_rate
    if seconds < SHORTEST_SECONDS:
        raise SourceError(
            f"{path} has {seconds:.3f} s of audio: "
            f"{SHORTEST_SECONDS} s are needed at least."
        )
    if not bool(torch.isfinite(signal).all()):
        raise SourceError(
            f"{path} has samples that are not finite numbers: it is damaged."
        )
    return signal
