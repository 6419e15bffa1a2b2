"""Round a model's weights from its first layers to its last.

In the quantized model a block sees what quantized blocks give. So the first
block is rounded, calibration runs again, the second is rounded to what it then
sees, and so on.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Callable, NamedTuple, Optional

import torch
from tqdm import tqdm

from speechbrain_stablequant.core import distributed
from speechbrain_stablequant.core.numerics import Quantized
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import CalibrationError, StableQuantError
from speechbrain_stablequant.layers import (
    Conversion,
    LayerWeights,
    cached_weights,
    quantized_class,
)
from speechbrain_stablequant.methods.registry import ROUNDINGS
from speechbrain_stablequant.methods.rounding.hessian import (
    HessianCollector,
    why_no_hessian,
)
from speechbrain_stablequant.methods.settings import Settings

__all__ = ["UNREACHED", "Rounded", "round_weights"]

MAX_PASSES = 16
UNREACHED = "calibration never reached it"


class Rounded(NamedTuple):
    """What `round_weights` gives back.

    Arguments
    ---------
    plan : QuantizationPlan
        The plan; its layers say how they were rounded.
    weights : dict
        Integers by layer and attribute name, of layers that were not rounded
        to the nearest.
    nearest : dict
        Why the others were, by layer name.
    """

    plan: QuantizationPlan
    weights: LayerWeights
    nearest: dict[str, str]


def round_weights(
    conversion: Conversion,
    plan: QuantizationPlan,
    calibrate: Callable[[], None],
    settings: Settings,
    progress: bool = True,
) -> Rounded:
    """Round the weights of a plan by ``settings.rounding``.

    There is a calibration pass for each block, or for each of
    ``settings.rounding_passes`` runs of blocks. A layer without a Hessian, one
    that shares its weight with another and one that calibration never reaches
    are rounded to the nearest.

    Arguments
    ---------
    conversion : Conversion
        The prepared float model; in float afterwards, whatever happens.
    plan : QuantizationPlan
        Schemes and input ranges.
    calibrate : callable
        Runs the calibration data of this rank; called once a pass.
    settings : Settings
        ``rounding`` and ``rounding_passes``.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    Rounded
        Plan, integers, and why some layers were rounded to the nearest.

    Raises
    ------
    CalibrationError
        If a pass reaches no layer: the data can be gone through only once.
    """
    reasons = _reasons(conversion, plan)
    layers, weights, quantized = {}, {}, []
    bar = tqdm(
        total=len(plan.layers),
        desc=settings.rounding,
        unit="layer",
        disable=not progress,
    )
    try:
        with bar:
            for names in _passes(plan, settings.rounding_passes):
                pending = [name for name in names if name not in reasons]
                seen = _observe(conversion, plan, pending, calibrate)
                for name in names:
                    quantized.append(name)
                    layers[name], mine = _round_layer(
                        conversion, name, plan.layers[name], seen, settings
                    )
                    if mine is None:
                        reasons.setdefault(name, UNREACHED)
                    else:
                        weights[name] = mine
                    bar.update()
    finally:
        # `set` of a layer may have failed: then there is nothing to bring back.
        conversion.dequantize(n for n in quantized if n in layers)
    ordered = {name: layers[name] for name in plan.layers}
    return Rounded(dataclasses.replace(plan, layers=ordered), weights, reasons)


def _reasons(conversion: Conversion, plan: QuantizationPlan) -> dict[str, str]:
    """Return why layers are rounded to the nearest, as far as known."""
    owners: Counter = Counter()
    floats = {}
    for name in plan.layers:
        module = conversion.layer(name)
        found = quantized_class(module).quantizable_weights(module).values()
        floats[name] = [id(weight) for weight in found]
        owners.update(floats[name])
    reasons = {}
    for name, layer in plan.layers.items():
        why = why_no_hessian(conversion.layer(name))
        if layer.weight.is_float:
            why = f"{layer.weight.dtype} needs no other rounding"
        elif any(owners[weight] > 1 for weight in floats[name]):
            why = "it shares its weight with another layer"
        if why is not None:
            reasons[name] = why
    return reasons


def _passes(plan: QuantizationPlan, limit: Optional[int]) -> list[list[str]]:
    """Return the layers of each pass: whole blocks, in the plan's order."""
    blocks: dict[str, list[str]] = {}
    for name, layer in plan.layers.items():
        blocks.setdefault(layer.unit or name, []).append(name)
    groups = list(blocks.values())
    count = min(limit or MAX_PASSES, len(groups))
    ends = [len(groups) * (i + 1) // count for i in range(count)]
    return [
        [name for group in groups[start:end] for name in group]
        for start, end in zip([0, *ends], ends)
    ]


def _observe(conversion, plan, names, calibrate) -> HessianCollector:
    """Collect the Hessians of some layers, in a model as it is now."""
    seen = HessianCollector(
        {name: (conversion.layer(name), plan.layers[name]) for name in names}
    )
    if not names:
        return seen
    reached: list[bool] = []
    with contextlib.ExitStack() as hooks:
        for name in plan.layers:
            handle = conversion.layer(name).register_forward_pre_hook(
                lambda *_: reached.append(True) if not reached else None
            )
            hooks.enter_context(handle)
        with torch.no_grad(), cached_weights(conversion.root), seen:
            calibrate()
    if not any(distributed.gather(bool(reached))):
        raise CalibrationError(
            "A calibration pass reached none of the layers to round. Rounding "
            "goes through the data several times: where the batches are a "
            "generator, give a list of them."
        )
    seen.merge()
    return seen


def _round_layer(
    conversion: Conversion,
    name: str,
    plan: LayerPlan,
    seen: HessianCollector,
    settings: Settings,
) -> tuple[LayerPlan, Optional[Mapping[str, Quantized]]]:
    """Round a layer and quantize it; return its plan and integers.

    Without a Hessian the integers are None: the conversion rounds to nearest.
    """
    hessians = seen.hessians(name)
    if hessians is None:
        conversion.set(name, dataclasses.replace(plan, rounding="nearest"))
        conversion.quantize([name])
        return dataclasses.replace(plan, rounding="nearest"), None
    module = conversion.layer(name)
    cls = quantized_class(module)
    weights = {}
    try:
        for short, weight in cls.quantizable_weights(module).items():
            weights[short] = ROUNDINGS[settings.rounding](
                cls.to_rows(module, short, weight.detach()),
                hessians[short],
                plan.weight,
                plan.weight_observer,
                plan.weight_percentile,
            )
    except StableQuantError as err:
        raise type(err)(f"Layer '{name}': {err}") from None
    plan = dataclasses.replace(plan, rounding=settings.rounding)
    conversion.set(name, plan)
    conversion.set_weights(name, weights)
    conversion.quantize([name])
    return plan, weights
