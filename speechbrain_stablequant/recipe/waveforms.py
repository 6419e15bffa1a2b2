"""Calibration data from a YAML file: listed audio, turned into features."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import numpy as np
import torch
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataio import load_data_csv, load_data_json, read_audio
from torch import nn

from speechbrain_stablequant.errors import CalibrationError, KnobError, nearest
from speechbrain_stablequant.layers.modules import evaluating

__all__ = ["WaveformBatch", "WaveformBatches"]

_AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_LENGTHS = ("lengths", "lens", "wav_lens")  # what SpeechBrain calls them


class WaveformBatch(NamedTuple):
    """What a model is called on: ``model(*batch)``.

    Arguments
    ---------
    inputs : torch.Tensor
        Waveforms, or what the front end made of them.
    lens : torch.Tensor
        Relative lengths.
    """

    inputs: torch.Tensor
    lens: torch.Tensor


class WaveformBatches:
    """Utterances in random order, one at a time, for calibration.

    For scripts without a Brain. The list is read when calibration begins, so
    it may be one that the script prepares after the YAML was loaded::

        calibration_batches: !new:speechbrain_stablequant.WaveformBatches
            source: !ref <train_data>
            front_end: [!ref <compute_features>, !ref <mean_var_norm>]

    Each batch is one utterance, so that observers see no padding. Each
    iteration gives the same batches.

    Arguments
    ---------
    source : str or Path
        A data list as SpeechBrain reads it (csv or json) with ``wav`` and, for
        a part of a file, ``start`` and ``stop`` in samples; or a folder with
        audio files.
    front_end : list of callable
        Modules applied to the waveforms in turn. Those that take ``lengths``
        get the relative lengths too.
    num_utterances : int, optional
        At most so many; by default all, of which a block takes its
        ``calibration_utterances``.
    max_seconds : float, optional
        Longer utterances are cut to a random part of this duration.
    sample_rate : int
        Of the model; files at another rate are an error.
    replacements : dict
        Variables in the list: ``{data_root: /path}``.
    seed : int
        Seed of the order and of the cuts.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> audio_io.save(folder / "a.wav", torch.randn(1, 16000), 16000)
    >>> batches = WaveformBatches(folder, max_seconds=0.5)
    >>> [batch.inputs.shape for batch in batches]
    [torch.Size([1, 8000])]
    """

    def __init__(
        self,
        source: Union[str, Path],
        front_end: Sequence[Callable] = (),
        num_utterances: Optional[int] = None,
        max_seconds: Optional[float] = None,
        sample_rate: int = 16000,
        replacements: Optional[Mapping[str, str]] = None,
        seed: int = 1986,
    ):
        for name, value in (
            ("num_utterances", num_utterances),
            ("max_seconds", max_seconds),
            ("sample_rate", sample_rate),
        ):
            if value is not None and not value > 0:
                raise KnobError(f"{name} is {value}: use more than 0.")
        if callable(front_end):
            front_end = [front_end]
        self.source, self.front_end = Path(source), list(front_end)
        self.num_utterances, self.max_seconds = num_utterances, max_seconds
        self.sample_rate = sample_rate
        self.replacements, self.seed = dict(replacements or {}), seed

    def __iter__(self) -> Iterator[WaveformBatch]:
        """Read, cut and transform one utterance after the other."""
        entries = self._entries()
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(entries))[: self.num_utterances]
        for index in order:
            name, entry = entries[index]
            waveform = self._cut(self._read(name, entry), rng)
            yield self._transform(waveform.unsqueeze(0))

    # -- the list ----------------------------------------------------------------

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and columns of each utterance."""
        if self.source.is_dir():
            files = sorted(self.source.rglob("*"))
            files = [f for f in files if f.suffix.lower() in _AUDIO]
            entries = [(str(f), {"wav": str(f)}) for f in files]
        elif self.source.is_file():
            entries = list(self._read_list().items())
        else:
            raise CalibrationError(
                f"Calibration data: there is no '{self.source}'. Give a list "
                "(csv or json) or a folder with audio; a list that the script "
                "prepares is there only after its preparation."
            )
        if not entries:
            what = "audio files" if self.source.is_dir() else "utterances"
            raise CalibrationError(
                f"Calibration data: '{self.source}' has no {what}."
            )
        for name, entry in entries:
            if not isinstance(entry, dict) or "wav" not in entry:
                columns = list(entry) if isinstance(entry, dict) else []
                raise CalibrationError(
                    f"Calibration data: '{name}' of '{self.source}' has no "
                    "column 'wav' with the path of its audio."
                    + nearest("wav", columns)
                )
        return entries

    def _read_list(self) -> dict[str, dict]:
        is_json = self.source.suffix.lower() == ".json"
        load = load_data_json if is_json else load_data_csv
        try:
            return load(self.source, self.replacements)
        except (KeyError, ValueError, AttributeError) as err:
            text = err.args[0] if err.args else err
            raise CalibrationError(
                f"Calibration data: '{self.source}' is not a data list of "
                f"SpeechBrain: {text}. Variables go into replacements, such as "
                "{data_root: /path}."
            ) from err

    # -- one utterance -------------------------------------------------------------

    def _read(self, name: str, entry: dict[str, Any]) -> torch.Tensor:
        """Return the samples of an utterance."""
        try:
            part = _part(entry)
            rate = audio_io.info(part["file"]).sample_rate
            waveform = read_audio(part)
        except (KeyError, OSError, RuntimeError, ValueError) as err:
            raise CalibrationError(
                f"Calibration data: cannot read '{name}' of '{self.source}': "
                f"{err}"
            ) from err
        if rate != self.sample_rate:
            raise CalibrationError(
                f"Calibration data: '{part['file']}' is sampled at {rate} Hz, "
                f"the model takes {self.sample_rate} Hz (sample_rate)."
            )
        return waveform if waveform.dim() == 1 else waveform.mean(-1)

    def _cut(self, waveform: torch.Tensor, rng) -> torch.Tensor:
        if self.max_seconds is None:
            return waveform
        count = max(1, int(self.max_seconds * self.sample_rate))
        start = rng.integers(0, max(0, len(waveform) - count) + 1)
        return waveform[start : start + count]

    def _transform(self, inputs: torch.Tensor) -> WaveformBatch:
        """Apply the front end in evaluation mode; statistics stay as they are."""
        lens = torch.ones(len(inputs))
        modules = [m for m in self.front_end if isinstance(m, nn.Module)]
        with torch.no_grad(), evaluating(modules):
            for function in self.front_end:
                name = _lengths_name(function)
                inputs = function(inputs, **({name: lens} if name else {}))
        return WaveformBatch(inputs, lens)


def _part(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an utterance in the form that SpeechBrain reads."""
    if isinstance(entry["wav"], dict):
        return entry["wav"]
    bounds = {
        key: int(float(entry[key]))
        for key in ("start", "stop")
        if entry.get(key) not in (None, "")
    }
    return {"file": entry["wav"], **bounds}


def _lengths_name(function: Callable) -> Optional[str]:
    """Return what a callable calls relative lengths, if it takes them."""
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:  # of torch's own functions
        return None
    return next((name for name in _LENGTHS if name in parameters), None)
