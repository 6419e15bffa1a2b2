"""Measure a test pass: time in the model, seconds of audio, peak memory."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

__all__ = ["PassMeasure", "measured_pass"]


@dataclass
class PassMeasure:
    """What one pass over a test set took.

    Arguments
    ---------
    seconds : float
        Time in ``evaluate_batch``: model, decoding and metrics, without
        loading data.
    audio_seconds : float
        Duration of all utterances without padding; 0 where the batches do
        not hold waveforms.
    peak_num_bytes : int, optional
        Largest resident memory of the process during the pass. The process
        holds the float model all the time.
    threads : int
        Threads of torch.

    Example
    -------
    >>> PassMeasure(seconds=2.0, audio_seconds=8.0).real_time_factor
    0.25
    """

    seconds: float = 0.0
    audio_seconds: float = 0.0
    peak_num_bytes: Optional[int] = None
    threads: int = 1

    @property
    def real_time_factor(self) -> Optional[float]:
        """Seconds of computing for a second of audio."""
        if not self.audio_seconds:
            return None
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict:
        """Return plain data."""
        return {**vars(self), "real_time_factor": self.real_time_factor}


@contextlib.contextmanager
def measured_pass(brain) -> Iterator[PassMeasure]:
    """Measure what a Brain evaluates while the block runs.

    Arguments
    ---------
    brain : speechbrain.Brain
        Its ``evaluate_batch`` is wrapped on the instance.
    """
    measure = PassMeasure(threads=torch.get_num_threads())
    before = vars(brain).get("evaluate_batch")
    evaluate_batch = brain.evaluate_batch
    sample_rate = getattr(brain.hparams, "sample_rate", 16000)

    def timed(batch, *args, **kwargs):
        start = time.perf_counter()
        result = evaluate_batch(batch, *args, **kwargs)
        measure.seconds += time.perf_counter() - start
        measure.audio_seconds += _num_samples(batch) / sample_rate
        return result

    _reset_peak()
    vars(brain)["evaluate_batch"] = timed
    try:
        yield measure
    finally:
        if before is None:
            del vars(brain)["evaluate_batch"]
        else:
            vars(brain)["evaluate_batch"] = before
        measure.peak_num_bytes = _peak_num_bytes()


def _num_samples(batch) -> float:
    """Return the number of samples in a batch, without padding."""
    signal = getattr(batch, "sig", None)
    if signal is None or not hasattr(signal, "lengths"):
        return 0.0
    return float(signal.lengths.sum()) * signal.data.shape[1]


def _reset_peak() -> None:
    """Let Linux count the peak from here on; elsewhere it stays unknown."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_num_bytes() -> Optional[int]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 if found else None
