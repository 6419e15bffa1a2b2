"""Layers in training: float weights underneath, quantized values in use.

A trainable layer is its quantized class with one difference: where that
dequantizes integers, this quantizes and dequantizes the float weight, with a
gradient. So all that holds of a quantized layer (attributes that are read,
attention that is decomposed, wrappers) holds in training too, and the
``Parameter`` objects that an optimizer knows stay the same.
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn

from speechbrain_stablequant.core.numerics import (
    Quantized,
    quantize_with,
    repeat_groups,
    row_scales,
    split_groups,
)
from speechbrain_stablequant.core.plan import InputPlan, LayerPlan
from speechbrain_stablequant.layers import QuantizedModule, quantized_class
from speechbrain_stablequant.layers.base import forget_bound_forward
from speechbrain_stablequant.methods.training.fake_quantize import (
    fake_quantize_learned,
    step_gradient_scale,
)

__all__ = [
    "TrainableLayer",
    "float_mode",
    "make_trainable",
    "set_weight_scheme",
    "step_parameters",
    "trainable_layers",
    "trained_inputs",
    "trained_weights",
]


class TrainableLayer:
    """Mixin of layers in training; comes before a quantized class.

    For each weight there is a parameter ``<weight>_log_step`` (channels,
    groups), for each quantized input ``<input>_log_step``, one value.
    """

    _runs_in_float = False

    def dequantized(self, name: str) -> torch.Tensor:
        """Return the weight as its integers would give it back."""
        weight = self._parameters[name]
        if self._runs_in_float:
            return weight
        scheme = self._weight_schemes[name]
        rows = centred(type(self).to_rows(self, name, weight), scheme)
        log_step = self._parameters[f"{name}_log_step"]
        count = rows.numel() // log_step.numel()
        learned = fake_quantize_learned(
            rows,
            repeat_groups(log_step, rows.shape[1], scheme),
            scheme,
            gradient_scale=step_gradient_scale(count, scheme),
        )
        return self.from_rows(name, learned)

    def dequantized_parts(self, name: str, count: int) -> list[torch.Tensor]:
        """Return the weight in equal parts along its first axis."""
        return list(self.dequantized(name).chunk(count))

    def quantize_input(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize one input, with a gradient for its step."""
        scheme = self._input_schemes.get(name)
        if scheme is None or self._runs_in_float:
            return x
        if scheme.is_float:
            return super().quantize_input(name, x)
        zero_point = self._buffers[f"{name}_zero_point"]
        return fake_quantize_learned(
            x,
            self._parameters[f"{name}_log_step"],
            scheme,
            None if scheme.symmetric else zero_point,
            step_gradient_scale(x.numel(), scheme),
        )


def centred(rows: torch.Tensor, scheme) -> torch.Tensor:
    """Take the mean out of rows that only their signs will be left of.

    As in BiT (Liu et al. 2022, arXiv 2205.13016): a row whose weights had the
    same sign would otherwise become a constant.

    Arguments
    ---------
    rows : torch.Tensor
        (channels, n) weights.
    scheme : QuantizationScheme
        Their scheme; rows of any but one bit are returned as they are.
    """
    return rows - rows.mean(1, keepdim=True) if scheme.is_binary else rows


def make_trainable(module: nn.Module, plan: LayerPlan) -> None:
    """Turn a float layer into one in training, in place.

    Arguments
    ---------
    module : torch.nn.Module
        A layer with a quantized class, prepared by a `Conversion`.
    plan : LayerPlan
        Schemes and input ranges to start from.
    """
    cls = quantized_class(module)
    cls.begin_conversion(module, plan)
    module.__class__ = _trainable_class(cls)
    forget_bound_forward(module)
    set_weight_scheme(module, plan)
    _set_inputs(module, plan)


@functools.cache  # layers of one quantized class share one class
def _trainable_class(cls: type) -> type:
    name = cls.__name__.replace("Quantized", "Trainable")
    return type(name, (TrainableLayer, cls), {})


def _set_inputs(module: nn.Module, plan: LayerPlan) -> None:
    """Set the ranges of the inputs; 16-bit inputs have no step to learn."""
    for name, input_plan in plan.inputs.items():
        module.set_input(name, input_plan)
        if not input_plan.scheme.is_float:
            scale = module._buffers[f"{name}_scale"]
            _set_step(module, name, scale.detach().log())


def set_weight_scheme(
    module: nn.Module, plan: LayerPlan, keep_steps: bool = False
) -> None:
    """Set the bit width of the weights of a layer in training.

    Step sizes are changed in place, so that the optimizer keeps them.

    Arguments
    ---------
    module : TrainableLayer
        The layer.
    plan : LayerPlan
        The scheme, and the rule for the scales to start from.
    keep_steps : bool
        Leave the step sizes: they belong to this bit width already.
    """
    for name in module._weight_shapes:
        module._weight_schemes[name] = plan.weight
        if keep_steps:
            continue
        weight = module._parameters[name].detach()
        rows = type(module).to_rows(module, name, weight).to(torch.float32)
        grouped = split_groups(centred(rows, plan.weight), plan.weight)
        scale, _ = row_scales(
            grouped, plan.weight, plan.weight_observer, plan.weight_percentile
        )
        _set_step(module, name, scale.log())


def _set_step(module: nn.Module, name: str, value: torch.Tensor) -> None:
    key = f"{name}_log_step"
    if key in module._parameters:
        module._parameters[key].data.copy_(value)
        return
    # Where a recipe freezes the weights, the steps are frozen as well.
    weights = [module._parameters[n] for n in module._weight_shapes]
    trained = any(weight.requires_grad for weight in weights)
    step = nn.Parameter(value.clone(), requires_grad=trained)
    module.register_parameter(key, step)


def trainable_layers(root: nn.Module) -> dict[str, TrainableLayer]:
    """Return the layers in training by qualified name.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    """
    return {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, TrainableLayer)
    }


def step_parameters(root: nn.Module) -> list[nn.Parameter]:
    """Return the step sizes (their logarithms) of all layers in training.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    """
    return [
        parameter
        for layer in trainable_layers(root).values()
        for name, parameter in layer._parameters.items()
        if name.endswith("_log_step")
    ]


@contextlib.contextmanager
def float_mode(root: nn.Module) -> Iterator[None]:
    """Run layers in training as float layers while the block runs.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    """
    layers = trainable_layers(root).values()
    for layer in layers:
        layer._runs_in_float = True
    try:
        yield
    finally:
        for layer in layers:
            layer._runs_in_float = False


def trained_weights(layer: QuantizedModule) -> dict[str, Quantized]:
    """Return the integers and scales that a layer in training stands for.

    Arguments
    ---------
    layer : TrainableLayer
        The layer; is not changed.

    Returns
    -------
    dict
        `Quantized` rows by attribute name.
    """
    found = {}
    for name, scheme in layer._weight_schemes.items():
        weight = layer._parameters[name].detach()
        rows = centred(type(layer).to_rows(layer, name, weight), scheme)
        scale = layer._parameters[f"{name}_log_step"].detach().exp()
        steps = repeat_groups(scale, rows.shape[1], scheme)
        values = quantize_with(rows, steps, None, scheme)
        found[name] = Quantized(values, scale.clone(), None)
    return found


def trained_inputs(
    layer: QuantizedModule, plan: LayerPlan
) -> dict[str, InputPlan]:
    """Return the plan of each input with the range that was learned.

    Arguments
    ---------
    layer : TrainableLayer
        The layer.
    plan : LayerPlan
        What it started from.
    """
    found = {}
    for name, old in plan.inputs.items():
        scheme = old.scheme
        if scheme.is_float:
            found[name] = old
            continue
        step = float(layer._parameters[f"{name}_log_step"].detach().exp())
        zero = int(layer._buffers[f"{name}_zero_point"])
        low, high = step * (scheme.qmin - zero), step * (scheme.qmax - zero)
        if scheme.symmetric:
            low = -high if scheme.signed else 0.0
        found[name] = InputPlan(scheme, low, high, old.observer)
    return found
