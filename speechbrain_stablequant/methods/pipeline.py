"""The order of the steps, for a Brain and for a plain module alike."""

import contextlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from speechbrain_stablequant.core import distributed
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import (
    CalibrationError,
    KnobError,
    PlanError,
    nearest,
)
from speechbrain_stablequant.layers import (
    Conversion,
    LayerWeights,
    quantizable_layers,
)
from speechbrain_stablequant.methods.calibration import (
    ActivationCollector,
    Statistics,
)
from speechbrain_stablequant.methods.coverage import Coverage, cover
from speechbrain_stablequant.methods.rounding import (
    UNREACHED,
    Rounded,
    round_weights,
)
from speechbrain_stablequant.methods.search import (
    METHODS,
    Journal,
    SearchContext,
    fingerprint,
    group_blocks,
    weights_digest,
)
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training.first_last import with_first_last
from speechbrain_stablequant.metrics.evaluator import Evaluator

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
        Layers that calibration never reached: weight-only, to the nearest.
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
        The options.
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
        If activations are to be quantized, or weights to be rounded by their
        error on data, and no data came.
    """
    if settings.plan is not None:
        plan = QuantizationPlan.load(settings.plan)
        return given_plan(conversion, settings, plan)
    _check_patterns(conversion, settings)
    settings = with_first_last(conversion.root, settings)
    layers = _selected(conversion, settings)
    # Too small a coverage is known before the long part begins.
    _coverage(conversion, layers, settings).check(settings.min_coverage)
    if settings.rounding != "nearest" and calibrate is None:
        raise CalibrationError(
            f"rounding: {settings.rounding} needs calibration data. Give some, "
            "or set rounding: nearest."
        )
    names = [name for name, _, _ in layers]
    context = SearchContext(
        conversion=conversion,
        layers=names,
        blocks=group_blocks(conversion.root, names),
        statistics=statistics
        or _statistics(conversion, layers, settings, calibrate),
        settings=settings,
        evaluator=evaluator,
        journal=_journal(conversion, settings, evaluator, folder),
        progress=progress,
    )
    unreached = [
        name
        for name, _, cls in layers
        if cls.input_names
        and settings.bit_widths(name)[1] != 32
        and not context.statistics.get(name)
    ]
    return _planned(context, calibrate, unreached)


def _planned(
    context: SearchContext,
    calibrate: Optional[Callable[[], None]],
    unreached: list[str],
) -> Planned:
    """Search, round the weights and say what is covered."""
    conversion, settings = context.conversion, context.settings
    plan, report = _searched(context)
    rounded = Rounded(plan, {}, {})
    if settings.rounding != "nearest":
        rounded = round_weights(
            conversion, plan, calibrate, settings, context.progress
        )
    for name, why in rounded.nearest.items():
        if why == UNREACHED and name not in unreached:
            unreached.append(name)
    notes = {n: f"to nearest: {why}" for n, why in rounded.nearest.items()}
    notes.update(dict.fromkeys(unreached, UNREACHED))
    return Planned(
        rounded.plan,
        cover(conversion, rounded.plan, settings, notes),
        report,
        unreached,
        context.statistics,
        rounded.weights,
    )


def _searched(context: SearchContext) -> tuple[QuantizationPlan, dict]:
    """Return the plan of the method of the settings, and its report."""
    settings = context.settings
    try:
        result = METHODS[settings.method](context)
    finally:
        context.journal.close()
    found = result.plan.layers
    every = (n for n, _, _ in quantizable_layers(context.conversion.root))
    about = {
        **settings.search_identity(),
        # Whoever applies the plan need not ask for it again.
        "float_layers": [name for name in every if name not in found],
    }
    return QuantizationPlan(found, settings.method, about), result.report


def given_plan(
    conversion: Conversion, settings: Settings, plan: QuantizationPlan
) -> Planned:
    """Check that a plan fits a model, and what it covers.

    Raises
    ------
    PlanError
        If it names a layer that the model does not have, or one whose
        integers do not follow from the plan.
    CoverageError
        If too little of the model would be quantized.
    """
    rounded = [n for n, p in plan.layers.items() if p.rounding != "nearest"]
    if rounded:
        raise PlanError(
            f"The plan's layer '{rounded[0]}' has rounding: "
            f"{plan.layers[rounded[0]].rounding}; its integers are in the "
            "checkpoint that was written with the plan, not in the plan. Load "
            "that checkpoint, make the plan again (plan: null), or set "
            f"'rounding' to 'nearest' in the file for {len(rounded)} layers."
        )
    _check_model(conversion, plan)
    for name, layer in plan.layers.items():
        conversion.set(name, layer)
    coverage = cover(conversion, plan, settings)
    coverage.check(settings.min_coverage)
    return Planned(plan, coverage)


def _check_model(conversion: Conversion, plan: QuantizationPlan) -> None:
    """Refuse a plan that has nothing in common with a model."""
    if not plan.layers:
        return
    for name in plan.layers:
        with contextlib.suppress(AttributeError):
            conversion.root.get_submodule(name)
            return
    own = next((n for n, _, _ in quantizable_layers(conversion.root)), None)
    raise PlanError(
        f"The model does not have any of the {len(plan.layers)} layers that "
        f"the plan names ('{next(iter(plan.layers))}' is one, the model has "
        f"'{own}'): it is a plan of another model."
    )


def _selected(conversion: Conversion, settings: Settings):
    """Return the layers to quantize: name, module, quantized class."""
    return [
        (name, module, cls)
        for name, module, cls in quantizable_layers(conversion.root)
        if settings.kept_by(name) is None and settings.bit_widths(name)[0] != 32
    ]


def _check_patterns(conversion: Conversion, settings: Settings) -> None:
    """Refuse a pattern that matches nothing: it is most likely a typo."""
    layers = [name for name, _, _ in quantizable_layers(conversion.root)]
    names = [*layers, *(n for n, _ in conversion.root.named_parameters())]
    for option in ("keep", "layer_bits"):
        for pattern in getattr(settings, option):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise KnobError(
                    f"{option}: '{pattern}' matches no layer."
                    + nearest(pattern, layers)
                )


def _coverage(conversion, layers, settings) -> Coverage:
    """Return the coverage to expect, before inputs are known."""
    planned = {
        name: LayerPlan(settings.weight_scheme(settings.bit_widths(name)[0]))
        for name, _, _ in layers
    }
    return cover(conversion, QuantizationPlan(planned), settings)


def _statistics(conversion, layers, settings, calibrate) -> Statistics:
    """Observe the inputs that are to be quantized."""
    observed = [
        entry for entry in layers if settings.bit_widths(entry[0])[1] != 32
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
    """Open the journal of this search: same weights, data and options."""
    if evaluator is None:
        return Journal(None, "")
    identity = fingerprint(
        weights_digest(conversion.root),
        settings.search_identity(),
        evaluator.fingerprint(),
        torch.__version__,
    )
    return Journal(folder, identity, distributed.rank())
