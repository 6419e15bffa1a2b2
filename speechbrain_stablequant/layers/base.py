"""What all quantized layers share, and the registry that finds their class.

A layer is converted *in place*: its class changes, its float weights leave
``_parameters`` and integers enter ``_buffers``. Whoever holds a reference to
the layer, or reads its ``weight``, still works: the attribute dequantizes.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional

import torch
from torch import nn

from speechbrain_stablequant.core.numerics import (
    Quantized,
    dequantize,
    fake_quantize,
    quantize,
    range_to_scale,
)
from speechbrain_stablequant.core.options import check_names
from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import PlanError

__all__ = [
    "DequantizedParameter",
    "MixinBase",
    "QuantizedModule",
    "cached_weights",
    "forget_bound_forward",
    "quantized_class",
    "register",
]

_REGISTRY: dict[type, type["QuantizedModule"]] = {}
_DERIVED: dict[tuple, type] = {}

if TYPE_CHECKING:
    from torch.nn import Module as MixinBase
else:
    MixinBase = object  # subclasses of a mixin bring the float class along


def register(*float_classes: type) -> Callable[[type], type]:
    """Register a quantized class for one or more float layer classes.

    Arguments
    ---------
    *float_classes : type
        Subclasses of ``torch.nn.Module`` that the decorated class replaces.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    TypeError
        If the decorated class is not a `QuantizedModule` listed before the
        float class, so that its ``forward`` would not be reached; or if what
        it says of itself is of the wrong kind.
    """

    def decorate(quantized: type) -> type:
        name, order = quantized.__name__, quantized.__mro__
        if (
            QuantizedModule not in order
            or nn.Module not in order
            or order.index(QuantizedModule) > order.index(nn.Module)
        ):
            raise TypeError(
                f"{name} must derive from QuantizedModule and, after it, from "
                "the float class."
            )
        for attribute in ("weight_names", "input_names"):
            value = getattr(quantized, attribute)
            if not isinstance(value, tuple):  # a text would pass, by letters
                raise TypeError(
                    f"{attribute} of {name} is {value!r}: a tuple of names is "
                    "needed, such as ('weight',)."
                )
        for float_class in float_classes:
            if not issubclass(float_class, nn.Module):
                raise TypeError(
                    f"{name} is registered for {float_class.__name__}, which "
                    "is not a subclass of torch.nn.Module."
                )
            _REGISTRY[float_class] = quantized
        return quantized

    return decorate


def quantized_class(module: nn.Module) -> Optional[type["QuantizedModule"]]:
    """Return the quantized class for a float layer, or None.

    A subclass of a registered class gets a quantized class of its own, which
    keeps the subclass's ``forward`` and ``isinstance`` checks.
    """
    float_class = type(module)
    if isinstance(module, QuantizedModule):
        return float_class
    base = next(
        (_REGISTRY[c] for c in float_class.__mro__ if c in _REGISTRY), None
    )
    if base is None:
        return None
    names = tuple(base.quantizable_weights(module))
    missing = {
        n: DequantizedParameter(n)
        for n in names
        if not isinstance(
            inspect.getattr_static(base, n, None), DequantizedParameter
        )
    }
    if _REGISTRY.get(float_class) is base and not missing:
        return base
    key = (base, float_class, names)
    if key not in _DERIVED:
        bases = (
            (base,) if issubclass(base, float_class) else (base, float_class)
        )
        _DERIVED[key] = type(f"Quantized{float_class.__name__}", bases, missing)
    return _DERIVED[key]


class DequantizedParameter:
    """An attribute that reads as the float weight its integers stand for."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, module, owner=None):
        return self if module is None else module.dequantized(self.name)

    def __set__(self, module, value):
        raise PlanError(
            f"'{self.name}' of this {type(module).__name__} is quantized and "
            "cannot be assigned: restore the float model first."
        )


class QuantizedModule(MixinBase):
    """Mixin of all quantized layers; comes before the float class.

    A subclass says which attributes are weights (``weight_names``), which
    inputs are activations to quantize (``input_names``) and, where the output
    channel is not the first axis, how a weight becomes rows and back.
    """

    weight_names: tuple[str, ...] = ("weight",)
    input_names: tuple[str, ...] = ("input",)
    # Set by `begin_conversion`, by the attribute name of the weight or of the input.
    _weight_schemes: dict[str, QuantizationScheme]
    _weight_shapes: dict[str, tuple[int, ...]]
    _weight_dtypes: dict[str, torch.dtype]
    _input_schemes: dict[str, QuantizationScheme]
    _weight_cache: Any  # a dict while weights are cached, a tracer's store

    # -- what a float layer has to offer ---------------------------------

    @classmethod
    def quantizable_weights(cls, module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the float weights by attribute name, in a stable order."""
        found = {n: module._parameters.get(n) for n in cls.weight_names}
        return {n: w for n, w in found.items() if w is not None}

    @classmethod
    def unsupported(cls, module: nn.Module) -> Optional[str]:
        """Return why this layer cannot be quantized, or None."""
        return None

    @classmethod
    def bind_inputs(cls, args, kwargs) -> dict[str, torch.Tensor]:
        """Return the tensors of ``input_names`` in a call's arguments."""
        named = {n: kwargs[n] for n in cls.input_names if n in kwargs}
        return {**dict(zip(cls.input_names, args)), **named}

    @staticmethod
    def to_rows(module: nn.Module, name: str, weight):
        """Turn a weight into (output channels, values)."""
        return weight.flatten(1)

    def from_rows(self, name: str, rows):
        """Undo `to_rows`."""
        return rows.reshape(self._weight_shapes[name])

    # -- conversion --------------------------------------------------------

    @classmethod
    def quantize_weights(cls, module, plan: LayerPlan) -> dict[str, Quantized]:
        """Quantize the float weights of a layer as its plan says."""
        return {
            name: quantize(
                cls.to_rows(module, name, weight.detach()),
                plan.weight,
                plan.weight_observer,
                plan.weight_percentile,
            )
            for name, weight in cls.quantizable_weights(module).items()
        }

    @classmethod
    def begin_conversion(
        cls, module, plan: LayerPlan
    ) -> dict[str, torch.Tensor]:
        """Note what the methods below need to know; return the float weights."""
        floats = cls.quantizable_weights(module)
        module._weight_schemes = dict.fromkeys(floats, plan.weight)
        module._weight_shapes = {n: tuple(w.shape) for n, w in floats.items()}
        module._weight_dtypes = {n: w.dtype for n, w in floats.items()}
        module._input_schemes = {}
        module._weight_cache = None
        return floats

    @classmethod
    def install(cls, module, plan: LayerPlan, weights: Mapping[str, Quantized]):
        """Turn a float layer into a quantized one, in place.

        Arguments
        ---------
        module : torch.nn.Module
            Float layer; an instance of the class that ``cls`` replaces.
        plan : LayerPlan
            Schemes and input ranges.
        weights : dict
            `Quantized` rows by attribute name.

        Raises
        ------
        PlanError
            If the plan names an input that the layer does not have.
        """
        owner = type(module).__name__
        if not cls.input_names:
            owner += ", of which only weights are quantized,"
        check_names(owner, plan.inputs, cls.input_names, PlanError, "input")
        floats = cls.begin_conversion(module, plan)
        for name, quantized in weights.items():
            device = floats[name].device
            del module._parameters[name]
            for part, tensor in zip(Quantized._fields, quantized):
                if tensor is not None:
                    module.register_buffer(f"{name}_{part}", tensor.to(device))
        module.__class__ = cls
        forget_bound_forward(module)
        for name, input_plan in plan.inputs.items():
            module.set_input(name, input_plan)

    def set_input(self, name: str, plan: InputPlan):
        """Set the range that an input is quantized to."""
        scale, zero_point = range_to_scale(
            torch.tensor(plan.low), torch.tensor(plan.high), plan.scheme
        )
        self._input_schemes[name] = plan.scheme
        own = (*self._buffers.values(), *self._parameters.values())
        device = next(t.device for t in own if t is not None)
        for part, value in (("scale", scale), ("zero_point", zero_point)):
            self.register_buffer(f"{name}_{part}", value.to(device))

    # -- execution -----------------------------------------------------------

    def conversion_buffers(self) -> list[str]:
        """Return the names of the buffers that conversion has added."""
        names = (
            f"{name}_{part}"
            for name in (*self._weight_schemes, *self._input_schemes)
            for part in Quantized._fields
        )
        return [name for name in names if name in self._buffers]

    def quantized_weight(self, name: str) -> Quantized:
        """Return the integers and scales of a weight."""
        buffers = self._buffers
        return Quantized(
            *(buffers.get(f"{name}_{part}") for part in Quantized._fields)
        )

    def dequantized(self, name: str) -> torch.Tensor:
        """Return the float weight that the integers stand for."""
        cache = self._weight_cache
        if cache is not None and name in cache:
            return cache[name]
        rows = dequantize(
            self.quantized_weight(name), self._weight_schemes[name]
        )
        weight = self.from_rows(name, rows.to(self._weight_dtypes[name]))
        if cache is not None:
            cache[name] = weight
        return weight

    def dequantized_parts(self, name: str, count: int) -> list[torch.Tensor]:
        """Return a float weight in equal parts along its first axis."""
        cache = self._weight_cache
        if hasattr(cache, "parts"):  # a tracer wants constants, not slices
            return cache.parts(name, count)
        return list(self.dequantized(name).chunk(count))

    def _apply(self, fn, recurse=True):
        """Move the layer; ``.half()`` changes its weights, not its scales."""
        before = {n: self._buffers[n] for n in self.conversion_buffers()}
        super()._apply(fn, recurse)
        for name, dtype in self._weight_dtypes.items():
            self._weight_dtypes[name] = fn(torch.empty(0, dtype=dtype)).dtype
        for name, old in before.items():
            new = self._buffers[name]
            if new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def quantize_input(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Quantize and dequantize one input, if the plan says so."""
        scheme = self._input_schemes.get(name)
        if scheme is None:
            return x
        buffers = self._buffers
        return fake_quantize(
            x,
            buffers[f"{name}_scale"].to(torch.float32),
            buffers[f"{name}_zero_point"],
            scheme,
        )

    def extra_repr(self) -> str:
        """Describe the schemes after what the float layer says of itself."""
        parts = [super().extra_repr()]
        schemes = {**self._weight_schemes, **self._input_schemes}
        parts += [f"{n}={s.describe()}" for n, s in schemes.items()]
        return ", ".join(p for p in parts if p)


def forget_bound_forward(module: nn.Module) -> None:
    """Drop a ``forward`` on the instance that is the float class's own.

    transformers leaves one behind when it has recorded hidden states; it would
    be called in place of the quantized class's.
    """
    forward = module.__dict__.get("forward")
    if inspect.ismethod(forward) and forward.__self__ is module:
        del module.__dict__["forward"]


@contextlib.contextmanager
def cached_weights(model: nn.Module) -> Iterator[None]:
    """Keep dequantized weights in memory while the block runs.

    Reference execution dequantizes a weight at each use; a scoring pass over
    many batches is quicker with a float copy of the weights at hand.

    Arguments
    ---------
    model : torch.nn.Module
        Model with quantized layers.
    """
    layers = [m for m in model.modules() if isinstance(m, QuantizedModule)]
    for layer in layers:
        layer._weight_cache = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__["_weight_cache"] = None
