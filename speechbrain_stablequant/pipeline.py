"""The order of the steps, for a Brain and for a plain module alike."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from speechbrain_stablequant import distributed
from speechbrain_stablequant.calibration import ActivationCollector, Statistics
from speechbrain_stablequant.coverage import Coverage, cover
from speechbrain_stablequant.errors import CalibrationError, KnobError, nearest
from speechbrain_stablequant.layers import (
    Conversion,
    LayerWeights,
    quantizable_layers,
)
from speechbrain_stablequant.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.scoring import Evaluator
from speechbrain_stablequant.search import (
    METHODS,
    Journal,
    SearchContext,
    fingerprint,
    group_units,
    weights_digest,
)
from speechbrain_stablequant.settings import Settings

__all__ = ["Planned", "given_plan", "make_plan"]


@dataclass
class Planned:
    """A plan with how it came about.

    Arguments
    ---------
    plan : QuantizationPlan
        What to quantize.
    coverage : Coverage
        What becomes of every parameter.
    search : dict
        The report of the search method, plain data.
    unreached : list of str
        Layers that calibration never reached: weight-only.
    statistics : dict
        What calibration saw; serves another plan of the same weights.
    weights : dict
        Integers by layer and attribute name, where they are not those nearest
        to the float weights.
    """

    plan: QuantizationPlan
    coverage: Coverage
    search: dict[str, Any] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    statistics: Statistics = field(default_factory=dict)
    weights: LayerWeights = field(default_factory=dict)


def make_plan(
    conversion: Conversion,
    settings: Settings,
    calibrate: Optional[Callable[[], None]],
    evaluator: Optional[Evaluator],
    folder: Optional[Path] = None,
    progress: bool = True,
    statistics: Optional[Statistics] = None,
) -> Planned:
    """Calibrate, search and check the coverage.

    Arguments
    ---------
    conversion : Conversion
        The prepared float model; still in float afterwards.
    settings : Settings
        The knobs.
    calibrate : callable, optional
        Runs the calibration data of this rank through the model.
    evaluator : Evaluator, optional
        For methods that measure.
    folder : Path, optional
        Where the search keeps its journal.
    progress : bool
        Whether to show progress bars.
    statistics : dict, optional
        What an earlier calibration of the same weights saw; saves another.

    Returns
    -------
    Planned
        The plan, its coverage and the report of the search.

    Raises
    ------
    CoverageError
        If too little of the model would be quantized.
    CalibrationError
        If activations are to be quantized and no data came.
    """
    if settings.plan is not None:
        plan = QuantizationPlan.load(settings.plan)
        return given_plan(conversion, settings, plan)
    _check_patterns(conversion, settings)
    layers = _selected(conversion, settings)
    # Too small a coverage is known before the long part begins.
    _coverage(conversion, layers, settings).check(settings.min_coverage)
    if not statistics:
        statistics = _statistics(conversion, layers, settings, calibrate)
    unreached = [
        name
        for name, _, cls in layers
        if cls.input_names
        and settings.layer_widths(name)[1] != 32
        and not statistics.get(name)
    ]
    names = [name for name, _, _ in layers]
    context = SearchContext(
        conversion=conversion,
        layers=names,
        units=group_units(conversion.root, names),
        statistics=statistics,
        settings=settings,
        evaluator=evaluator,
        journal=_journal(conversion, settings, evaluator, folder),
        progress=progress,
    )
    try:
        result = METHODS[settings.method](context)
    finally:
        context.journal.close()
    found = result.plan.layers
    every = (name for name, _, _ in quantizable_layers(conversion.root))
    plan = QuantizationPlan(
        found,
        settings.method,
        {
            **settings.search_identity(),
            # Whoever applies the plan need not ask for it again.
            "float_layers": [name for name in every if name not in found],
        },
    )
    notes = dict.fromkeys(unreached, "calibration never reached it")
    coverage = cover(conversion, plan, settings, notes)
    return Planned(plan, coverage, result.report, unreached, statistics)


def given_plan(
    conversion: Conversion, settings: Settings, plan: QuantizationPlan
) -> Planned:
    """Check that a plan fits a model, and what it covers.

    Raises
    ------
    PlanError
        If it names a layer that the model does not have.
    CoverageError
        If too little of the model would be quantized.
    """
    for name, layer in plan.layers.items():
        conversion.set(name, layer)
    coverage = cover(conversion, plan, settings)
    coverage.check(settings.min_coverage)
    return Planned(plan, coverage)


def _selected(conversion: Conversion, settings: Settings):
    """Return the layers to quantize: name, module, quantized class."""
    return [
        (name, module, cls)
        for name, module, cls in quantizable_layers(conversion.root)
        if settings.kept_by(name) is None
        and settings.layer_widths(name)[0] != 32
    ]


def _check_patterns(conversion: Conversion, settings: Settings) -> None:
    """Refuse a pattern that matches nothing: it is most likely a typo."""
    layers = [name for name, _, _ in quantizable_layers(conversion.root)]
    names = [*layers, *(n for n, _ in conversion.root.named_parameters())]
    for knob in ("keep", "layer_bits"):
        for pattern in getattr(settings, knob):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise KnobError(
                    f"{knob}: '{pattern}' matches no layer."
                    + nearest(pattern, layers)
                )


def _coverage(conversion, layers, settings) -> Coverage:
    """Return the coverage to expect, before inputs are known."""
    planned = {
        name: LayerPlan(settings.weight_scheme(settings.layer_widths(name)[0]))
        for name, _, _ in layers
    }
    return cover(conversion, QuantizationPlan(planned), settings)


def _statistics(conversion, layers, settings, calibrate) -> Statistics:
    """Observe the inputs that are to be quantized."""
    observed = [
        entry for entry in layers if settings.layer_widths(entry[0])[1] != 32
    ]
    if not observed:
        return {}
    if calibrate is None:
        raise CalibrationError(
            "Quantizing activations needs calibration data. Give some, a plan "
            "(plan: path.json) or weights only (bits: W8)."
        )
    with torch.no_grad(), ActivationCollector(observed) as collector:
        calibrate()
    mine, merged = collector.statistics, ActivationCollector(observed)
    merged.merge(distributed.gather(mine))
    if all(not inputs for inputs in merged.statistics.values()):
        raise CalibrationError(
            "Calibration ran, but reached none of the layers to quantize. "
            "Does the validation set have utterances, and does "
            "compute_forward use these modules?"
        )
    return merged.statistics


def _journal(conversion, settings, evaluator, folder) -> Journal:
    """Open the journal of this search: same weights, data and knobs."""
    if evaluator is None:
        return Journal(None, "")
    identity = fingerprint(
        weights_digest(conversion.root),
        settings.search_identity(),
        evaluator.fingerprint(),
        torch.__version__,
    )
    return Journal(folder, identity, distributed.rank())
