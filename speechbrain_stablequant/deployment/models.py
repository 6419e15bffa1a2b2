"""Published models, loaded through their stock interface."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from speechbrain.dataio import audio_io

from speechbrain_stablequant.artifacts.experiment import is_published
from speechbrain_stablequant.errors import SourceError, StableQuantError
from speechbrain_stablequant.publishing import interface_of, load

__all__ = ["LoadedModel", "load_model", "read_audio"]

SHORTEST_SECONDS = 0.1  # encoders need a frame, voices are far longer


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
        Folder or hub name that it was loaded from.
    seconds : float
        How long that took.
    """

    interface: Any
    name: str
    place: str
    seconds: float

    @property
    def takes_audio(self) -> bool:
        """Whether it hears, and does not read."""
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
    """Load a published folder, as a stranger would.

    Arguments
    ---------
    source : str
        The folder, its name on the hub, or an experiment that was published
        into ``ptq/hub``.

    Raises
    ------
    SourceError
        If it is no such folder, or cannot be loaded.
    """
    place = _published(source)
    known = interface_of(place)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as savedir:
        try:
            model = load(place, savedir)
        except StableQuantError:
            raise
        except Exception as err:  # of any class that the YAML names
            raise SourceError(
                f"{place} cannot be loaded with {known.name}: "
                f"{type(err).__name__}: {' '.join(str(err).split())[:400]}"
            ) from err
    model.eval()
    return LoadedModel(model, known.name, place, time.perf_counter() - start)


def _published(source: str) -> str:
    """Return a published folder, or what may be a name on the hub."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    for folder in (path, path / "hub", path / "ptq" / "hub"):
        if folder.is_dir() and is_published(folder):
            return str(folder.resolve())
    raise SourceError(
        f"{source} is no published folder (hyperparams.yaml with quantized "
        "*.ckpt beside it), and has none in ptq/hub. Publish the experiment "
        "first: stablequant publish."
    )


def read_audio(model: LoadedModel, paths: Sequence[str]) -> list[torch.Tensor]:
    """Read files through the toolkit, at the model's rate, one channel.

    Raises
    ------
    SourceError
        If a file is missing, too short, no audio, or has samples that are no
        numbers.
    """
    return [_signal(model, path) for path in paths]


def _signal(model: LoadedModel, path: str) -> torch.Tensor:
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
