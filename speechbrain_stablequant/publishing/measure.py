"""Speed and agreement of a published model: float, reference and runtimes."""

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Optional

import torch

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.layers import cached_weights
from speechbrain_stablequant.layers.dequantize import in_float
from speechbrain_stablequant.metrics.turns import in_turns, timed
from speechbrain_stablequant.publishing.load import LoadedModel
from speechbrain_stablequant.runtime import Acceleration, make_backend

__all__ = ["agreement", "measure"]

FLOAT, REFERENCE = "PyTorch float32", "reference"
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Candidate:
    """One way of running a model.

    Arguments
    ---------
    name : str
        Shown in the table.
    running : callable
        Returns the context in which the model runs that way.
    acceleration : Acceleration, optional
        For what the runtime's execution graph says.
    first_seconds : float
        Of the first pass, compiling included.
    seconds : list of float
        Of the passes that count.
    outputs : list
        Of the first pass, one for each utterance.
    failure : str
        Why it does not run.
    """

    name: str
    running: Callable[[], contextlib.AbstractContextManager]
    acceleration: Optional[Acceleration] = None
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    outputs: list = field(default_factory=list)
    failure: str = ""

    def to_dict(self) -> dict:
        """Return plain data."""
        row = {
            "name": self.name,
            "failure": self.failure or None,
            "first_pass_seconds": self.first_seconds,
            "seconds": self.seconds,
            "median_seconds": statistics.median(self.seconds)
            if self.seconds
            else None,
            "runtime": None,
        }
        if self.acceleration is not None:
            report = self.acceleration.report()
            row["runtime"] = {
                **report.settings,
                "summary": report.summary(),
                "num_int8": report.num_int8,
                "num_planned": report.num_planned,
                "compile_seconds": report.seconds,
                "notes": report.notes,
            }
        return row


def measure(
    model: LoadedModel,
    signals: Sequence[torch.Tensor],
    runtimes: Sequence[str],
    reference: bool = False,
    threads: int = 1,
    batch_size: int = 1,
    rounds: int = 3,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict]:
    """Run a model on audio in several ways, in turns.

    A pass before the first round compiles, and gives the outputs.

    Arguments
    ---------
    model : LoadedModel
        The model.
    signals : sequence of torch.Tensor
        Waveforms.
    runtimes : sequence of str
        ``openvino``, ``onnx``; float PyTorch is always measured.
    reference : bool
        Whether to measure reference execution too, which is exact and slow.
    threads : int
        Threads of a call.
    batch_size : int
        Utterances in a call.
    rounds : int
        How many passes count.
    tell : callable
        Called with what is going on.

    Returns
    -------
    list of dict
        Float first: times, ``real_time_factor``, ``times_as_fast`` and
        ``agreement`` (both relative to float), ``agreement_with_reference``,
        ``runtime``; ``failure`` where a way does not run.
    """
    batches = _batched(signals, batch_size)
    found = _candidates(model, runtimes, reference, threads)
    for each in found:
        tell(f"{each.name}: first pass")
        each.first_seconds, _ = timed(_first_pass, model, each, batches)

    def seconds(each: Candidate, turn: int) -> float:
        tell(f"{each.name}: round {turn + 1} of {rounds}")
        with each.running():
            # Entering a context clears caches of weights: fill them first.
            model.run(*batches[0])
            return timed(_run, model, batches)[0]

    running = {c.name: partial(seconds, c) for c in found if not c.failure}
    times = in_turns(running, rounds)
    for each in found:
        each.seconds = times.get(each.name, [])
    length = sum(map(len, signals)) / model.sample_rate
    return _compared(found, length)


def _batched(signals: Sequence[torch.Tensor], size: int) -> list[Batch]:
    """Return padded batches with relative lengths, in the given order."""
    batches = []
    for start in range(0, len(signals), size):
        part = signals[start : start + size]
        lengths = torch.tensor([len(s) for s in part], dtype=torch.float32)
        wavs = torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True)
        batches.append((wavs, lengths / wavs.shape[1]))
    return batches


def _candidates(model, runtimes, reference, threads) -> list[Candidate]:
    """Return float first, then what was asked for."""
    root = model.interface.mods
    found = [Candidate(FLOAT, lambda: in_float(root))]
    if reference:
        found.append(Candidate(REFERENCE, lambda: cached_weights(root)))
    for runtime in runtimes:
        backend = make_backend(runtime, threads, allow_float="*")
        acceleration = Acceleration(root, backend)
        running = partial(_installed, acceleration)
        found.append(Candidate(runtime, running, acceleration))
    return found


@contextlib.contextmanager
def _installed(acceleration: Acceleration):
    acceleration.install()
    try:
        yield
    finally:
        acceleration.remove()


def _run(model: LoadedModel, batches: Sequence[Batch]) -> list:
    return [out for batch in batches for out in model.run(*batch)]


def _first_pass(model: LoadedModel, each: Candidate, batches) -> None:
    try:
        with each.running():
            each.outputs = _run(model, batches)
    except (StableQuantError, RuntimeError) as err:
        each.failure = " ".join(str(err).split())[:300]


def _compared(found: Sequence[Candidate], audio_seconds: float) -> list[dict]:
    """Return rows with what is relative to the audio and to other rows."""
    rows = [each.to_dict() for each in found]
    outputs = {each.name: each.outputs for each in found}
    base = rows[0]["median_seconds"]
    for row in rows:
        median, own = row["median_seconds"], outputs[row["name"]]
        row["real_time_factor"] = median and median / audio_seconds
        row["times_as_fast"] = base / median if base and median else None
        for key, other in (
            ("agreement", FLOAT),
            ("agreement_with_reference", REFERENCE),
        ):
            expected = outputs.get(other)
            row[key] = agreement(own, expected) if own and expected else None
    return rows


def agreement(outputs: list, expected: list) -> dict:
    """Say how alike outputs are: the same words, or the angle of embeddings.

    Example
    -------
    >>> agreement(["a b", "c"], ["a b", "d"])
    {'same_transcripts': 1, 'utterances': 2}
    """
    if isinstance(expected[0], str):
        same = sum(a == b for a, b in zip(outputs, expected))
        return {"same_transcripts": same, "utterances": len(expected)}
    angles = [
        float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        for a, b in zip(outputs, expected)
    ]
    return {
        "mean_cosine": sum(angles) / len(angles),
        "lowest_cosine": min(angles),
        "utterances": len(expected),
    }
