"""The quantization plan: plain data that says what is quantized, and how.

A search produces a plan, a conversion consumes it, a checkpoint carries it and
a report prints it. A plan can be written to JSON, edited by hand and applied
again without a search.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_origin

from speechbrain_stablequant.core.options import (
    check_choice,
    check_names,
    check_number,
)
from speechbrain_stablequant.core.scheme import (
    GRANULARITIES,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import PlanError

__all__ = [
    "GRANULARITIES",
    "ROUNDINGS",
    "WEIGHT_OBSERVERS",
    "InputPlan",
    "LayerPlan",
    "QuantizationPlan",
    "QuantizationScheme",
]

WEIGHT_OBSERVERS = ("max", "mse", "percentile")
ROUNDINGS = ("nearest", "gptq", "trained")
PLAN_VERSION = 1
PLAN_FORMAT = "speechbrain_stablequant.plan"
_LARGEST = 3.4e38  # scales are float32


@dataclass(frozen=True)
class InputPlan:
    """How one input of a layer is quantized.

    Arguments
    ---------
    scheme : QuantizationScheme
        Bit width and mapping; inputs are quantized per tensor, to integer
        levels.
    low : float
        Lower end of the range that is kept, in the units of the activation.
    high : float
        Upper end of that range; what lies outside saturates.
    observer : str
        Rule that chose the range (``max``, ``percentile``, ``mse``,
        ``entropy``).
    percentile : float
        Where the histogram was cut before the rule was applied (100: nowhere).
    clipped : float
        Fraction of the calibration values that lie outside the range.
    """

    scheme: QuantizationScheme
    low: float
    high: float
    observer: str = "max"
    percentile: float = 100.0
    clipped: float = 0.0

    def __post_init__(self):
        if self.scheme.granularity != "per_tensor":
            raise PlanError(
                "Inputs are quantized per tensor, not "
                f"{self.scheme.granularity}."
            )
        if self.scheme.levels != "integer":
            raise PlanError(
                f"Inputs cannot have {self.scheme.levels} levels, only weights "
                "can: use levels: integer in the scheme of the input."
            )
        if not (
            -_LARGEST <= self.low <= 0 <= self.high <= _LARGEST
            and self.high - self.low <= _LARGEST
        ):
            raise PlanError(
                f"The input range [{self.low}, {self.high}] must be finite "
                "and contain zero."
            )
        scheme = self.scheme
        if scheme.symmetric and not scheme.signed and self.low < 0:
            raise PlanError(
                "A symmetric unsigned scheme cannot hold the input range "
                f"[{self.low}, {self.high}]: use an affine or signed one."
            )


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantized.

    Arguments
    ---------
    weight : QuantizationScheme
        Scheme of all weights of the layer.
    kind : str
        Class of the layer, for example ``Linear``; checked when applied.
    unit : str
        Block of the search that the layer belongs to.
    weight_observer : str
        Rule for the weight scales: ``max``, ``mse`` or ``percentile``.
    weight_percentile : float
        For the ``percentile`` rule.
    rounding : str
        How weights become integers: to the ``nearest``, by ``gptq``, or
        ``trained``. Only the nearest follow from plan and float weights.
    inputs : dict
        `InputPlan` by input name; empty for weight-only quantization.
    """

    weight: QuantizationScheme
    kind: str = ""
    unit: str = ""
    weight_observer: str = "mse"
    weight_percentile: float = 99.99
    rounding: str = "nearest"
    inputs: Mapping[str, InputPlan] = field(default_factory=dict)

    def __post_init__(self):
        for name, choices in (
            ("rounding", ROUNDINGS),
            ("weight_observer", WEIGHT_OBSERVERS),
        ):
            check_choice(name, getattr(self, name), choices, PlanError)
        check_number(
            "weight_percentile", self.weight_percentile, 0, 100, PlanError
        )


@dataclass(frozen=True)
class QuantizationPlan:
    """What is quantized, layer by layer.

    Arguments
    ---------
    layers : dict
        `LayerPlan` by qualified layer name.
    method : str
        What made the plan: ``uniform``, ``stablequant``, ``manual``.
    settings : dict
        Plain values to remember with it (observer, seed, thresholds).

    Example
    -------
    >>> plan = QuantizationPlan(
    ...     {"enc.w": LayerPlan(QuantizationScheme(bits=4))}
    ... )
    >>> QuantizationPlan.from_json(plan.to_json()) == plan
    True
    """

    layers: Mapping[str, LayerPlan]
    method: str = "manual"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def float_layers(self) -> frozenset[str]:
        """Layers that were left in float by choice."""
        found = self.settings.get("float_layers")
        found = found if isinstance(found, (list, tuple)) else ()
        return frozenset(name for name in found if isinstance(name, str))

    def to_dict(self) -> dict:
        """Return nested plain dictionaries, ready for JSON."""
        head = {"format": PLAN_FORMAT, "version": PLAN_VERSION}
        return {**head, **dataclasses.asdict(self)}

    def to_json(self, indent: Optional[int] = 1) -> str:
        """Return the plan as JSON text, keys in a stable order."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=True)

    def save(self, path: Union[str, Path]) -> Path:
        """Write the plan to a JSON file and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_json(
        cls, text: str, source: str = "the plan"
    ) -> "QuantizationPlan":
        """Read a plan from JSON text; ``source`` names it in errors."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise PlanError(f"{source} is not valid JSON: {err}.") from err
        return cls.from_dict(data, source)

    @classmethod
    def load(cls, path: Union[str, Path]) -> "QuantizationPlan":
        """Read a plan from a JSON file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise PlanError(f"Cannot read the plan {path}: {err}.") from err
        return cls.from_json(text, str(path))

    @classmethod
    def from_dict(cls, data: dict, source: str = "the plan"):
        """Build a plan from plain dictionaries, checking every field."""
        if not isinstance(data, dict):
            raise PlanError(f"{source} is not a plan: it has no 'layers'.")
        data = dict(data)
        form = data.pop("format", PLAN_FORMAT)
        version = data.pop("version", PLAN_VERSION)
        if form != PLAN_FORMAT:
            raise PlanError(
                f"{source} has 'format' {form!r}; a plan has '{PLAN_FORMAT}'."
            )
        if version != PLAN_VERSION:
            raise PlanError(
                f"{source} has version {version}; this package reads "
                f"version {PLAN_VERSION}. Install a matching version."
            )
        return _build(cls, data, source)


def _build(cls, data, where):
    """Build a dataclass from plain data, each field as it is annotated."""
    if not isinstance(data, dict):
        raise PlanError(f"{where} must be an object, not {data!r}.")
    known = {f.name: f for f in dataclasses.fields(cls)}
    check_names(where, data, known, PlanError, "field")
    for name, each in known.items():
        required = each.default is each.default_factory  # there is neither
        if required and data.get(name) is None:
            raise PlanError(f"{where} needs a '{name}'.")
    checked = {
        key: _checked(value, known[key].type, f"{where}, '{key}'")
        for key, value in data.items()
    }
    try:
        return cls(**checked)
    except PlanError as err:
        raise PlanError(f"{where}: {err}") from err


_KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
}


def _checked(value, kind, where):
    """Check a JSON value against the annotation of its field."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if get_origin(kind) is Mapping:
        entries = {} if value is None else value
        if not isinstance(entries, dict):
            raise PlanError(f"{where} must be an object, not {value!r}.")
        _, item = get_args(kind)
        return {
            name: _checked(entry, item, f"{where}, '{name}'")
            for name, entry in entries.items()
        }
    if kind not in _KINDS:
        return value
    plain = (int, float) if kind is float else kind
    # To Python, True is a whole number as well.
    if isinstance(value, plain) and isinstance(value, bool) == (kind is bool):
        with contextlib.suppress(OverflowError):  # larger than any float
            return kind(value)
    raise PlanError(f"{where} is {value!r}: {_KINDS[kind]} is needed.")
