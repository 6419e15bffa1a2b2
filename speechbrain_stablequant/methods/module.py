"""`quantize`: everything without a recipe, for any ``torch.nn.Module``."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import nn
from tqdm import tqdm

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import CalibrationError, KnobError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.modules import evaluating
from speechbrain_stablequant.methods.coverage import Coverage
from speechbrain_stablequant.methods.pipeline import make_plan
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.metrics.evaluator import (
    DistanceEvaluator,
    Evaluator,
    ScoreEvaluator,
)

__all__ = ["QuantizationResult", "quantize"]


@dataclass
class QuantizationResult:
    """What `quantize` did, and the way back.

    Arguments
    ---------
    plan : QuantizationPlan
        What was quantized, and how.
    coverage : Coverage
        What became of every parameter.
    metrics : dict
        ``float`` and ``quantized`` score, when a score was given.
    search : dict
        Report of the search method.
    """

    plan: QuantizationPlan
    coverage: Coverage
    metrics: dict[str, float]
    search: dict[str, Any] = field(default_factory=dict)
    _conversion: Optional[Conversion] = None

    def restore(self) -> None:
        """Bring back the float model, bit for bit."""
        self._conversion.restore()


def quantize(
    model: nn.Module,
    batches: Optional[Iterable[Any]] = None,
    forward: Optional[Callable[[nn.Module, Any], Any]] = None,
    score: Optional[Callable[[nn.Module], float]] = None,
    output_folder: Optional[Path] = None,
    progress: bool = True,
    **options: Any,
) -> QuantizationResult:
    """Quantize a module in place.

    Arguments
    ---------
    model : torch.nn.Module
        Any module; its quantizable layers are converted.
    batches : iterable, optional
        Calibration data, needed unless only weights are quantized or a plan
        is given. The first ``calibration_utterances`` batches are used.
    forward : callable, optional
        ``forward(model, batch)``; by default ``model(batch)``.
    score : callable, optional
        ``score(model)``, a number where lower is better. Needed by
        ``method: stablequant``; without it the default is ``uniform``, and
        ``mixed_precision`` goes by the distance of the model's output on the
        calibration data. ``flag_threshold`` and ``max_drop`` are in the units
        of the score.
    output_folder : str or Path, optional
        Where the search keeps a journal, so that it can be resumed.
    progress : bool
        Whether to show progress bars.
    **options : dict
        See `Settings`: ``bits``, ``method``, ``observer``, ``keep``, ...

    Returns
    -------
    QuantizationResult
        Plan, coverage, metrics and ``restore()``.

    Raises
    ------
    KnobError
        For an unknown option or a bad value.
    StableQuantError
        For what else cannot be done; the model is then as it was.

    Example
    -------
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> data = [torch.randn(2, 8) for _ in range(4)]
    >>> result = quantize(model, data, bits="W4A8", progress=False)
    >>> result.coverage.fraction
    1.0
    >>> type(model[0]).__name__
    'QuantizedLinear'
    >>> result.restore()
    >>> type(model[0]).__name__
    'Linear'
    """
    if score is None and options.get("plan") is None:
        options.setdefault("method", "uniform")
    settings = Settings.from_options(options, "quantize")
    if settings.method == "quantization_aware":
        raise KnobError(
            "method: quantization_aware trains in the loop of a recipe, which "
            "quantize does not have: put the block into the recipe's hparams. "
            "Here, rounding: gptq does best with few bits."
        )
    conversion = Conversion(model)
    try:
        batches, forward = _checked(batches, settings), forward or _call
        metrics = {}
        with evaluating([model]):
            planned = make_plan(
                conversion,
                settings,
                _calibration(model, batches, forward, settings, progress),
                _evaluator(model, batches, forward, score, settings),
                None if output_folder is None else Path(output_folder),
                progress,
            )
            with torch.no_grad():
                if score is not None:
                    metrics["float"] = float(score(model))
                conversion.apply_plan(planned.plan, planned.weights)
                if score is not None:
                    metrics["quantized"] = float(score(model))
    except BaseException:
        conversion.restore()
        raise
    return QuantizationResult(
        planned.plan, planned.coverage, metrics, planned.search, conversion
    )


def _call(model, batch):
    return model(batch)


def _checked(batches, settings):
    """Refuse a single batch; keep what a search goes through repeatedly."""
    if isinstance(batches, (torch.Tensor, str, dict)):
        raise CalibrationError(
            f"batches is a {type(batches).__name__}; give an iterable of "
            "batches, for example [batch]."
        )
    repeats = settings.method == "mixed_precision"
    if batches is not None and (repeats or settings.rounding != "nearest"):
        limit = max(settings.calibration_utterances, settings.search_utterances)
        return list(itertools.islice(batches, limit))
    return batches


def _evaluator(model, batches, forward, score, settings) -> Optional[Evaluator]:
    """Return what a search goes by: the score, or else the output."""
    if score is not None:
        return ScoreEvaluator(model, score)
    if batches is None or settings.method != "mixed_precision":
        return None
    return DistanceEvaluator(
        lambda batch: forward(model, batch),
        batches[: settings.search_utterances],
    )


def _calibration(model, batches, forward, settings, progress):
    """Return what runs the calibration batches, or None without data."""
    if batches is None:
        return None

    def calibrate():
        limit = settings.calibration_utterances
        with tqdm(
            desc="Calibration", unit="batch", disable=not progress
        ) as bar:
            for _, batch in zip(range(limit), batches):
                forward(model, batch)
                bar.update()

    return calibrate
