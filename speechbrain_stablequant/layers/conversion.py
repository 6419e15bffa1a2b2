"""Convert a model layer by layer, and back."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

from torch import nn

from speechbrain_stablequant.core.numerics import Quantized
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import PlanError, nearest
from speechbrain_stablequant.layers.base import QuantizedModule, quantized_class
from speechbrain_stablequant.layers.rewrites import rewrite_for
from speechbrain_stablequant.layers.snapshot import ModuleSnapshot

__all__ = [
    "Conversion",
    "LayerWeights",
    "kind_of",
    "quantizable_layers",
    "unsupported_reason",
]

LayerWeights = Mapping[str, Mapping[str, Quantized]]


def quantizable_layers(
    root: nn.Module,
) -> Iterator[tuple[str, nn.Module, type]]:
    """Yield the layers of a model that can be quantized.

    Arguments
    ---------
    root : torch.nn.Module
        A prepared model (see `Conversion`).

    Yields
    ------
    name : str
        Qualified name.
    module : torch.nn.Module
        The layer.
    quantized : type
        Its quantized class.
    """
    for name, module in root.named_modules():
        quantized = quantized_class(module)
        if quantized is not None and unsupported_reason(root, name) is None:
            yield name, module, quantized


def unsupported_reason(root: nn.Module, name: str) -> Optional[str]:
    """Return why a layer cannot be quantized, or None.

    Arguments
    ---------
    root : torch.nn.Module
        The model.
    name : str
        Qualified name of the layer.
    """
    module = root.get_submodule(name)
    quantized = quantized_class(module)
    if quantized is None:
        return f"there is no quantized version of {type(module).__name__}"
    reason = quantized.unsupported(module)
    if reason is not None or not name:
        return reason
    wrapper = root.get_submodule(name.rpartition(".")[0])
    max_norm = getattr(wrapper, "max_norm", None)
    if isinstance(max_norm, (int, float)) and max_norm > 0:
        return "max_norm of its wrapper rewrites the weight at each use"
    return None


class Conversion:
    """A model whose layers can be switched between float and quantized.

    On construction the model is *prepared*: weight norm is fused and attention
    with raw weights is decomposed, which keeps its function. `restore` brings
    back the very same parameters, bit for bit, whatever happened in between.

    Arguments
    ---------
    root : torch.nn.Module
        The model; changed in place.

    Example
    -------
    >>> import torch
    >>> from speechbrain_stablequant.core.plan import QuantizationScheme
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> weight = model[0].weight
    >>> with Conversion(model) as conversion:
    ...     conversion.set("0", LayerPlan(QuantizationScheme(bits=4)))
    ...     conversion.quantize(["0"])
    ...     type(model[0]).__name__
    'QuantizedLinear'
    >>> model[0].weight is weight
    True
    """

    def __init__(self, root: nn.Module):
        self.root = root
        self._original: dict[int, ModuleSnapshot] = {}
        self._float: dict[str, ModuleSnapshot] = {}
        self._plans: dict[str, LayerPlan] = {}
        self._weights: dict[str, tuple[tuple, Mapping[str, Quantized]]] = {}
        self._shared: dict[tuple, Quantized] = {}
        try:
            for _, module in root.named_modules():
                self._prepare(module)
        except BaseException:
            self.restore()
            raise

    def _prepare(self, module: nn.Module) -> None:
        if isinstance(module, QuantizedModule):
            raise PlanError(
                "The model has quantized layers already. Restore the float "
                "model, or load a float checkpoint, before quantizing it."
            )
        rewrite = rewrite_for(module)
        if rewrite is not None:
            self._original.setdefault(id(module), ModuleSnapshot(module))
            rewrite()

    def __enter__(self) -> "Conversion":
        return self

    def __exit__(self, *exc_info) -> None:
        self.restore()

    def layer(self, name: str) -> nn.Module:
        """Return a layer by name, or raise a `PlanError` that helps."""
        try:
            return self.root.get_submodule(name)
        except AttributeError:
            names = [n for n, _, _ in quantizable_layers(self.root)]
            raise PlanError(
                f"The plan names a layer '{name}' that the model does not "
                "have." + nearest(name, names)
            ) from None

    def set(self, name: str, plan: LayerPlan) -> None:
        """Set the plan of a layer; the layer itself is switched to float.

        Raises
        ------
        PlanError
            If there is no such layer, or it is of another kind.
        """
        module = self.layer(name)
        if name in self._float:
            self.dequantize([name])
        reason = unsupported_reason(self.root, name)
        if reason is not None:
            raise PlanError(
                f"Layer '{name}' cannot be quantized: {reason}. Remove it "
                "from the plan."
            )
        kind = kind_of(module)
        if plan.kind and plan.kind != kind:
            raise PlanError(
                f"Layer '{name}' is a {kind}, the plan was made for a "
                f"{plan.kind}: it belongs to another model."
            )
        self._original.setdefault(id(module), ModuleSnapshot(module))
        self._float.setdefault(name, ModuleSnapshot(module))
        self._plans[name] = plan

    def set_weights(self, name: str, weights: Mapping[str, Quantized]) -> None:
        """Give a layer its integers, instead of computing them."""
        self._weights[name] = (_weight_key(self._plans[name]), weights)

    def quantize(self, names: Optional[Iterable[str]] = None) -> None:
        """Switch layers (all that have a plan) to their quantized version."""
        for name in list(self._plans if names is None else names):
            module, plan = self.layer(name), self._plans[name]
            if not isinstance(module, QuantizedModule):
                cls = quantized_class(module)
                assert cls is not None  # `set` has refused other layers
                weights = self._quantized_weights(name, module, cls, plan)
                cls.install(module, plan, weights)

    def dequantize(self, names: Optional[Iterable[str]] = None) -> None:
        """Switch layers (all that have a plan) back to float."""
        for name in list(self._plans if names is None else names):
            self._float[name].apply()

    def restore(self) -> None:
        """Bring the original float model back and forget all plans."""
        for state in self._original.values():
            state.apply()
        for store in (self._float, self._plans, self._weights, self._shared):
            store.clear()

    def apply_plan(
        self, plan: QuantizationPlan, weights: Optional[LayerWeights] = None
    ) -> None:
        """Quantize all layers as a plan says.

        Arguments
        ---------
        plan : QuantizationPlan
            The plan.
        weights : dict, optional
            Integers of layers, by layer and attribute name, where they are not
            those nearest to the float weights.
        """
        for name, layer in plan.layers.items():
            self.set(name, layer)
            if weights and name in weights:
                self.set_weights(name, weights[name])
        self.quantize(plan.layers)

    def _quantized_weights(self, name, module, cls, plan):
        """Quantize weights once for each rule, and tied weights only once."""
        key = _weight_key(plan)
        if name in self._weights and self._weights[name][0] == key:
            return self._weights[name][1]
        if plan.rounding != "nearest":
            raise PlanError(
                f"Layer '{name}' has integers from rounding: {plan.rounding}, "
                "which do not follow from a plan and float weights. Load the "
                "checkpoint that was written with the plan, or make the plan "
                "again on this model."
            )
        floats = cls.quantizable_weights(module)
        shared_keys = {n: (id(w), cls.to_rows, key) for n, w in floats.items()}
        if all(k in self._shared for k in shared_keys.values()):
            weights = {n: self._shared[k] for n, k in shared_keys.items()}
        else:
            weights = cls.quantize_weights(module, plan)
            self._shared.update({k: weights[n] for n, k in shared_keys.items()})
        self._weights[name] = (key, weights)
        return weights


def kind_of(module: nn.Module) -> str:
    """Return the name of a layer's float class, the same before and after."""
    name = type(module).__name__
    for prefix in ("Quantized", "Decomposed"):
        if name.startswith(prefix):
            name = name[len(prefix) :]
    return name


def _weight_key(plan: LayerPlan) -> tuple:
    return (
        plan.weight,
        plan.weight_observer,
        plan.weight_percentile,
        plan.rounding,
    )
