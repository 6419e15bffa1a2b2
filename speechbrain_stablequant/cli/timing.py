"""Candidates of a benchmark, run in turns in one process."""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

import torch

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.layers import cached_weights
from speechbrain_stablequant.layers.dequantize import in_float
from speechbrain_stablequant.publishing.load import LoadedModel
from speechbrain_stablequant.runtime import Acceleration, make_backend

__all__ = ["Candidate", "agreement", "batched", "candidates", "measure"]

FLOAT = "PyTorch float32"


@dataclass
class Candidate:
    """One way of running a model.

    Arguments
    ---------
    name : str
        Shown in the table.
    entered : callable
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
    entered: Callable[[], contextlib.AbstractContextManager]
    acceleration: Optional[Acceleration] = None
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    outputs: list = field(default_factory=list)
    failure: str = ""

    @property
    def median_seconds(self) -> Optional[float]:
        """Of the passes that count."""
        return statistics.median(self.seconds) if self.seconds else None


def candidates(
    model: LoadedModel, runtimes: Sequence[str], reference: bool, threads: int
) -> list[Candidate]:
    """Return float first, then what was asked for.

    Arguments
    ---------
    model : LoadedModel
        The model.
    runtimes : list of str
        ``openvino``, ``onnx``.
    reference : bool
        Whether to run plain torch with quantization, too.
    threads : int
        Threads of a call.
    """
    root = model.interface.mods
    found = [Candidate(FLOAT, lambda: in_float(root))]
    if reference:
        found.append(Candidate("reference", lambda: cached_weights(root)))
    for runtime in runtimes:
        backend = make_backend(runtime, threads, allow_float="*")
        acceleration = Acceleration(root, backend)
        found.append(
            Candidate(
                runtime,
                lambda acceleration=acceleration: _installed(acceleration),
                acceleration,
            )
        )
    return found


@contextlib.contextmanager
def _installed(acceleration: Acceleration):
    acceleration.install()
    try:
        yield
    finally:
        acceleration.remove()


def batched(signals: Sequence[torch.Tensor], size: int) -> list[tuple]:
    """Return padded batches with relative lengths, in the given order."""
    batches = []
    for start in range(0, len(signals), size):
        part = signals[start : start + size]
        lengths = torch.tensor([len(s) for s in part], dtype=torch.float32)
        wavs = torch.nn.utils.rnn.pad_sequence(list(part), batch_first=True)
        batches.append((wavs, lengths / wavs.shape[1]))
    return batches


def measure(
    model: LoadedModel,
    found: Sequence[Candidate],
    batches: Sequence[tuple],
    rounds: int,
    tell: Callable[[str], None],
) -> None:
    """Time all candidates, round by round, each once in a round.

    A pass before the first round compiles, and gives the outputs.

    Arguments
    ---------
    model : LoadedModel
        The model.
    found : sequence of Candidate
        Ways to run it; what is measured is noted in them.
    batches : sequence of tuple
        Waveforms and relative lengths.
    rounds : int
        How many timed passes each makes.
    tell : callable
        Called with what is going on.
    """
    for candidate in found:
        tell(f"{candidate.name}: first pass")
        start = time.perf_counter()
        try:
            candidate.outputs = _pass(model, candidate, batches)
        except (StableQuantError, RuntimeError) as err:
            candidate.failure = " ".join(str(err).split())[:300]
        candidate.first_seconds = time.perf_counter() - start
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for candidate in found:
            if not candidate.failure:
                candidate.seconds.append(_seconds(model, candidate, batches))


def _pass(model: LoadedModel, candidate: Candidate, batches) -> list:
    with candidate.entered():
        return [out for batch in batches for out in model.run(*batch)]


def _seconds(model: LoadedModel, candidate: Candidate, batches) -> float:
    """Return the seconds of a pass; what comes before it does not count."""
    with candidate.entered():
        model.run(*batches[0])  # caches of weights that a switch has cleared
        start = time.perf_counter()
        for batch in batches:
            model.run(*batch)
        return time.perf_counter() - start


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
