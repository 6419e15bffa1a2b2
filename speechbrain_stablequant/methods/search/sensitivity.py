"""Sensitivity: what each bit width of each layer costs, alone.

One layer is quantized at a time and the rest stays float. What is seen is how
far the model's output moves, how the metric changes, and how many bytes that
saves: the analysis of the ECAPA-TDNN framework (Hong, Chung, Kang, 2024,
https://arxiv.org/abs/2407.08991), for any model, bit width and metric.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Optional

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.core.packing import packed_num_bytes
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.layers import Conversion, kind_of, quantized_class
from speechbrain_stablequant.methods.search.context import SearchContext
from speechbrain_stablequant.methods.search.runner import (
    Candidate,
    CandidateRunner,
)
from speechbrain_stablequant.metrics.metric import Interval

__all__ = [
    "LayerOption",
    "ModelSizes",
    "change_row",
    "outermost_layers",
    "measure_layers",
    "sensitivity_rows",
]

_ENTRY = 100  # bytes of a tensor's entry in the header of a file, about
_SAMPLES = 200  # of the bootstrap; there are many layers and bit widths
_WORTH_FLOAT_INPUTS = 4.0  # times what float inputs gain in most layers


@dataclass(frozen=True)
class LayerOption:
    """A bit width that a layer may get, and what it does.

    Arguments
    ---------
    layer : str
        Name of the layer.
    bits : str
        ``W4A8``, or ``W32`` for float.
    plan : LayerPlan, optional
        How to do it; None for float.
    num_bytes : int
        Size of the layer's weights in a checkpoint.
    distance : float
        Squared distance of the model's output over its squared length.
    change : Interval, optional
        Of the metric; None where there is no metric.
    """

    layer: str
    bits: str
    plan: Optional[LayerPlan]
    num_bytes: int
    distance: float = 0.0
    change: Optional[Interval] = None


class ModelSizes:
    """Sizes in a checkpoint: of all, and of each layer at any bit width.

    Arguments
    ---------
    conversion : Conversion
        The prepared float model.
    """

    def __init__(self, conversion: Conversion):
        self.conversion = conversion
        tensors = conversion.root.state_dict().values()
        self.float_num_bytes = sum(tensor.nbytes for tensor in tensors)

    def of_layer(self, name: str, plan: Optional[LayerPlan]) -> int:
        """Return the size of a layer's weights, in bytes."""
        module = self.conversion.layer(name)
        cls = quantized_class(module)
        weights = cls.quantizable_weights(module)
        if plan is None:
            return sum(w.nbytes for w in weights.values())
        header = len(QuantizationPlan({name: plan}).to_json(indent=None))
        return header + sum(
            packed_num_bytes(
                cls.to_rows(module, short, weight).shape, plan.weight
            )
            + _ENTRY
            for short, weight in weights.items()
        )


def outermost_layers(layers: list[str]) -> dict[str, str]:
    """Return for each layer the outermost layer that it lies in.

    Example
    -------
    >>> outermost_layers(["a", "a.inner", "b"])
    {'a': 'a', 'a.inner': 'a', 'b': 'b'}
    """
    known, blocks = set(layers), {}
    for name in layers:
        parts = name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        blocks[name] = next(p for p in prefixes if p in known)
    return blocks


def measure_layers(
    context: SearchContext,
    runner: CandidateRunner,
    sizes: ModelSizes,
    indices: list[int],
) -> dict[str, list[LayerOption]]:
    """Quantize one layer at a time to each candidate bit width.

    Arguments
    ---------
    context : SearchContext
        Model, statistics and settings.
    runner : CandidateRunner
        Compares outputs too.
    sizes : ModelSizes
        Sizes of layers.
    indices : list of int
        Batches to measure on.

    Returns
    -------
    dict
        By layer, its options. A layer that the output does not depend on has
        one option only, the bit widths of the settings.
    """
    widths = dict.fromkeys(map(str, context.settings.candidates))
    options = {
        name: [_option(context, sizes, name, bits) for bits in widths]
        for name in context.layers
    }
    blocks = outermost_layers(context.layers)
    candidates = [
        Candidate(_key(o), blocks[o.layer], {o.layer: o.plan})
        for choices in options.values()
        for o in choices
        if o.plan is not None
    ]
    items = runner.run("Sensitivity", candidates, indices)

    def measured(option: LayerOption) -> LayerOption:
        if option.plan is None:
            return option
        key = _key(option)
        return dataclasses.replace(
            option,
            distance=runner.distance(key, indices),
            change=runner.change(items, key, samples=_SAMPLES),
        )

    found = {
        name: _sensible(context, sizes, [measured(o) for o in choices])
        for name, choices in options.items()
    }
    return _without_idle_float_inputs(found)


def _option(context, sizes, name, bits, widths=None) -> LayerOption:
    widths = widths or parse_bits(bits)
    plan = None
    if widths[0] != 32:
        plan = context.layer_plan(name, widths=widths)
    return LayerOption(name, bits, plan, sizes.of_layer(name, plan))


def _key(option: LayerOption) -> str:
    return f"{option.bits} {option.layer}"


def _sensible(context, sizes, choices) -> list[LayerOption]:
    """Return the options, or the usual one where nothing can be measured."""
    name = choices[0].layer
    quantized = [o for o in choices if o.plan is not None]
    if quantized and all(o.distance == 0 for o in quantized):
        # Validation never uses it, so that nothing can be said about it.
        weights, activations = widths = context.settings.bit_widths(name)
        bits = f"W{weights}" + (f"A{activations}" if activations != 32 else "")
        return [_option(context, sizes, name, bits, widths)]
    return choices


def _without_idle_float_inputs(options):
    """Leave float inputs only to layers that gain unusually much by them.

    They cost no bytes but the integer kernel, so that a budget of bytes alone
    would always prefer them.
    """
    gains = {
        (name, option.bits): _gain(option, choices)
        for name, choices in options.items()
        for option in choices
    }
    known = [gain for gain in gains.values() if gain is not None]
    limit = _WORTH_FLOAT_INPUTS * statistics.median(known) if known else 0.0
    return {
        name: [
            option
            for option in choices
            if gains[name, option.bits] is None
            or gains[name, option.bits] > limit
        ]
        for name, choices in options.items()
    }


def _gain(option: LayerOption, choices) -> Optional[float]:
    """Return what float inputs gain over integer ones of the same weights.

    None where they are not the question: float weights, integer inputs, or no
    candidate to compare with.
    """
    if option.plan is None or option.plan.inputs:
        return None
    gains = (
        other.distance - option.distance
        for other in choices
        if other.plan is not None
        and other.plan.inputs
        and other.plan.weight == option.plan.weight
    )
    return next(gains, None)


def change_row(change: Optional[Interval]) -> dict:
    """Return the change of the metric as plain data; None where unknown."""
    found = {} if change is None else change.to_dict()
    return {key: found.get(key) for key in ("change", "low", "high")}


def sensitivity_rows(
    conversion: Conversion, options: dict[str, list[LayerOption]]
) -> list[dict]:
    """Return the table as plain data, a row for each layer and bit width."""
    sizes = ModelSizes(conversion)
    rows = []
    for name, choices in options.items():
        float_num_bytes = sizes.of_layer(name, None)
        for option in choices:
            if option.plan is None:
                continue
            rows.append(
                {
                    "layer": name,
                    "kind": kind_of(conversion.layer(name)),
                    "bits": option.bits,
                    "num_bytes": option.num_bytes,
                    "saved_num_bytes": float_num_bytes - option.num_bytes,
                    "distance": option.distance,
                    **change_row(option.change),
                }
            )
    return rows
