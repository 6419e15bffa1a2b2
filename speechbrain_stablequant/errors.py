"""The errors that a user may see, each written to say what to do next."""

import difflib
from collections.abc import Iterable

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "CoverageError",
    "ExecutionError",
    "ExperimentError",
    "FloatModelError",
    "KnobError",
    "OutputError",
    "PlanError",
    "PublishError",
    "RuntimeConversionError",
    "SourceError",
    "StableQuantError",
    "nearest",
]


class StableQuantError(Exception):
    """Base of all errors raised on purpose by this package."""


class KnobError(StableQuantError, ValueError):
    """An option of the ``ptq`` block is unknown or has a value out of range."""


class PlanError(StableQuantError, ValueError):
    """A quantization plan is malformed or does not fit the model."""


class CalibrationError(StableQuantError, RuntimeError):
    """Calibration saw no data, or data that no range can be derived from."""


class CoverageError(StableQuantError, RuntimeError):
    """Too small a part of the weights would be quantized."""


class CheckpointError(StableQuantError, RuntimeError):
    """A quantized checkpoint is damaged, foreign or does not fit the model."""


class RuntimeConversionError(StableQuantError, RuntimeError):
    """A module cannot be converted for a runtime."""


class ExecutionError(StableQuantError, RuntimeError):
    """A layer that the plan quantizes would not run on integer kernels."""


class PublishError(StableQuantError, RuntimeError):
    """A folder cannot be made, checked or uploaded for a hub."""


class SourceError(StableQuantError):
    """A path that the user gave is missing, damaged or not from here."""


class ExperimentError(StableQuantError, FileNotFoundError):
    """A folder is not an experiment, or lacks what a step needs."""


class FloatModelError(StableQuantError, RuntimeError):
    """The float model of an experiment cannot be built or loaded."""


class OutputError(StableQuantError, FileExistsError):
    """The output is there already."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known name that is nearest to a wrong one.

    Arguments
    ---------
    name : str
        What the user wrote.
    known : iterable of str
        What they could have written.

    Returns
    -------
    str
        ``" Did you mean 'x'?"`` or, with nothing near, the list of all names
        (of a few, when there are many).

    Example
    -------
    >>> nearest("percentil", ["max", "percentile"])
    " Did you mean 'percentile'?"
    >>> nearest("wer", ["CER", "WER"])
    " Did you mean 'WER'?"
    """
    known = sorted(filter(None, map(str, known)))
    if not known:
        return ""
    small = {each.lower(): each for each in reversed(known)}
    match = difflib.get_close_matches(str(name).lower(), small, n=1, cutoff=0.5)
    if match:
        return f" Did you mean '{small[match[0]]}'?"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f" Known: {', '.join(known[:20])}{more}."
