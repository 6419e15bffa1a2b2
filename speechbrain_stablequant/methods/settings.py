"""The options of quantization, checked in one place.

`PostTrainingQuantizer` and `quantize` take the same options; both turn them into
`Settings`, which says what is wrong with a value and what to do about it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Optional, Union

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.core.plan import (
    WEIGHT_OBSERVERS,
    QuantizationScheme,
)
from speechbrain_stablequant.core.scheme import LEVELS, level_widths
from speechbrain_stablequant.errors import KnobError, PlanError, nearest
from speechbrain_stablequant.methods.calibration import OBSERVERS, TAIL_RULES
from speechbrain_stablequant.methods.presets import preset_knobs
from speechbrain_stablequant.methods.training_settings import TrainingSettings

__all__ = ["Settings", "parse_bits"]

METHODS = (
    "mixed_precision", "quantization_aware", "stablequant", "uniform",
)  # fmt: skip
ROUNDINGS = ("nearest", "gptq")
DEFAULT_CANDIDATES = ("W2A8", "W3A8", "W4A8", "W8A8", "W16", "W32")
DEFAULT_PERCENTILES = (
    100.0, 99.999, 99.99, 99.95, 99.9, 99.8, 99.5, 99.0, 98.0,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All options of a quantization with their defaults.

    Arguments
    ---------
    bits : str, int or dict
        Widths, see `parse_bits`.
    method : str
        ``stablequant``: layer-adaptive clipping by the recipe's metric.
        ``mixed_precision``: widths layer by layer, under a budget.
        ``uniform``: one observer for all layers, no search.
        ``quantization_aware``: a few more epochs of the recipe with learned
        step sizes and distillation from the float model; see ``training``.
    observer : str
        ``uniform``: ``max``, ``percentile``, ``mse`` or ``entropy``, for all
        layers; ``mixed_precision`` likewise. ``stablequant``: ``mse`` as in
        the paper, or ``entropy``, on the clipped histograms.
    percentile : float
        For the ``percentile`` observer, in percent.
    weight_observer : str
        ``mse``, ``max`` or ``percentile``.
    weight_granularity : str
        ``per_channel``, ``per_tensor`` or ``per_group``.
    weight_group_size : int, optional
        Values in a group, for ``per_group``.
    weight_symmetric : bool
        Symmetric or affine weights.
    weight_levels : str
        ``integer``; ``odd`` (weights of 1 to 4 bits, no level is zero) or
        ``ternary`` (of 2 bits). Weights of other widths stay ``integer``.
    rounding : str
        ``nearest``, or ``gptq``: weights make up for each other's rounding
        errors on the calibration data.
    rounding_passes : int, optional
        ``gptq``: calibration passes, at most. By default one for each unit, 16
        at most; with 1 all layers see the inputs of the float model.
    activation_symmetric : bool
        Symmetric or affine activations.
    activation_signed : bool or str
        Signed or unsigned activations. ``auto``, the two-set scheme: unsigned
        where calibration saw nothing negative (after a ReLU, attention
        probabilities), so that no level is wasted; signed elsewhere.
    keep : list of str
        Layers to keep in float: names with ``*`` wildcards.
    layer_bits : dict
        Widths by layer name pattern, over ``bits``; the last match counts.
    flag_threshold : float
        ``stablequant``: a unit is flagged when the metric rises by more than
        this many points (paper: 0.25).
    percentiles : list of float
        ``stablequant``: cut-offs tried for flagged units.
    tail : str
        ``drop`` or ``fold``: what becomes of the tail beyond a cut-off.
    candidates : list
        ``mixed_precision``: widths that a layer may get; 32 is float.
    max_drop : float, optional
        ``mixed_precision``: fewest bytes with the metric at most this much
        worse, in its own unit: points for error rates, hundredths for a
        loss (of perplexity, about percent).
    target_size : float, optional
        ``mixed_precision``: best metric within this part of the float bytes.
    ranking : str
        ``mixed_precision``: what a layer's sensitivity is: ``distance`` of
        the model's output to that of the float model, or the ``metric``, as
        in the ECAPA-TDNN framework.
    front_points : int
        ``mixed_precision``: plans, from small to large, that are measured to
        draw the Pareto front.
    min_coverage : float
        Stop when less than this part of the weight bytes is quantized.
    objective : str
        ``auto`` (the recipe's WER, else its first metric, else the loss),
        ``loss``, or the name of a metric attribute of the Brain.
    calibration_utterances : int
        Utterances that observers see.
    search_utterances : int
        Utterances that candidates are scored on.
    subset : float
        Part of these that candidates are scored on first.
    search_num_bytes : int
        Memory for reusing activations during a search.
    seed : int
        Seed of the samples and the bootstrap.
    plan : str, optional
        A plan (JSON file) to apply with no calibration and no search.
    training : dict
        ``quantization_aware``: its own options, see
        `speechbrain_stablequant.methods.training_settings.TrainingSettings`.
    preset : str, optional
        Options by name, see `speechbrain_stablequant.methods.presets`; those given
        beside it count more.

    Raises
    ------
    KnobError
        If a value is out of range; `from_knobs` also names unknown knobs.
    """

    bits: Any = "W8A8"
    method: str = "stablequant"
    observer: str = "mse"
    percentile: float = 99.99
    weight_observer: str = "mse"
    weight_granularity: str = "per_channel"
    weight_group_size: Optional[int] = None
    weight_symmetric: bool = True
    weight_levels: str = "integer"
    rounding: str = "nearest"
    rounding_passes: Optional[int] = None
    activation_symmetric: bool = True
    activation_signed: Union[bool, str] = True
    keep: Sequence[str] = ()
    layer_bits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flag_threshold: float = 0.25
    percentiles: Sequence[float] = DEFAULT_PERCENTILES
    tail: str = "drop"
    candidates: Sequence = DEFAULT_CANDIDATES
    max_drop: Optional[float] = None
    target_size: Optional[float] = None
    ranking: str = "distance"
    front_points: int = 12
    min_coverage: float = 0.95
    objective: str = "auto"
    calibration_utterances: int = 256
    search_utterances: int = 512
    subset: float = 0.25
    search_num_bytes: int = 1 << 31
    seed: int = 1986
    plan: Optional[Union[str, Path]] = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: Optional[str] = None

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], owner: str = "quantize"):
        """Build settings from keyword arguments of the user."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in knobs:
            if key not in known:
                raise KnobError(
                    f"{owner} has no option '{key}'." + nearest(key, known)
                )
        return cls(**{**preset_knobs(knobs.get("preset")), **knobs})

    def __post_init__(self):
        for name, choices in (
            ("method", METHODS),
            ("observer", OBSERVERS),
            ("weight_observer", WEIGHT_OBSERVERS),
            ("weight_levels", LEVELS),
            ("rounding", ROUNDINGS),
            ("tail", TAIL_RULES),
            ("ranking", ("distance", "metric")),
            ("activation_signed", (True, False, "auto")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise KnobError(
                    f"{name} '{value}' is unknown." + nearest(value, choices)
                )
        for name, low, high in (
            ("percentile", 0, 100),
            ("min_coverage", 0, 1),
            ("subset", 0, 1),
            ("flag_threshold", 0, float("inf")),
            ("calibration_utterances", 1, float("inf")),
            ("search_utterances", 1, float("inf")),
            ("search_num_bytes", 0, float("inf")),
            ("front_points", 2, 100),
        ):
            _check_number(name, getattr(self, name), low, high)
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        if isinstance(self.percentiles, (str, int, float)):
            raise KnobError("percentiles is a list, such as [100, 99.9, 99].")
        for value in self.percentiles:
            _check_number("percentiles", value, 50, 100)
        parse_bits(self.bits)
        for pattern, bits in self.layer_bits.items():
            try:
                parse_bits(bits)
            except KnobError as err:
                raise KnobError(f"layer_bits, '{pattern}': {err}") from None
        if self.method == "stablequant" and self.observer not in (
            "mse",
            "entropy",
        ):
            raise KnobError(
                f"observer '{self.observer}' goes with method: uniform; "
                "stablequant chooses scales by mse or entropy."
            )
        self._check_rounding()
        self._check_budget()
        self._check_schemes()
        self._check_training()

    def _check_rounding(self):
        passes = self.rounding_passes
        if passes is not None and (type(passes) is not int or passes < 1):
            raise KnobError(
                f"rounding_passes is {passes!r}: use a whole number of at "
                "least 1, or null for one pass a unit."
            )
        if self.plan is not None and self.rounding != "nearest":
            raise KnobError(
                f"rounding: {self.rounding} goes through calibration data, of "
                "which a plan that is given (plan: path.json) needs none: set "
                "one of them to its default."
            )

    def _check_budget(self):
        if isinstance(self.candidates, (str, int)) or not self.candidates:
            raise KnobError("candidates is a list, such as [W4A8, W8A8, W32].")
        for bits in self.candidates:
            try:
                parse_bits(bits)
            except KnobError as err:
                raise KnobError(f"candidates: {err}") from None
        if self.max_drop is not None:
            _check_number("max_drop", self.max_drop, 0, float("inf"))
        if self.target_size is not None:
            _check_number("target_size", self.target_size, 0, 1)
        if self.method == "mixed_precision" and (
            (self.max_drop is None) == (self.target_size is None)
        ):
            raise KnobError(
                "method: mixed_precision needs a budget: max_drop (fewest "
                "bytes within it) or target_size (best metric within it), one "
                "of them; set the other to null."
            )

    def _check_training(self):
        first_last = TrainingSettings.from_knobs(self.training).first_last
        try:
            parse_bits(first_last)
        except KnobError as err:
            raise KnobError(f"training: first_last: {err}") from None
        if self.method != "quantization_aware":
            return
        for name in ("rounding", "plan"):
            value = getattr(self, name)
            if value not in ("nearest", None):
                raise KnobError(
                    f"{name}: {value} does not go with method: "
                    "quantization_aware, which trains the integers itself."
                )
        if not self.weight_symmetric:
            raise KnobError(
                "method: quantization_aware learns the steps of symmetric "
                "weights: set weight_symmetric: True."
            )

    @property
    def training_settings(self) -> TrainingSettings:
        """The options below ``training``."""
        return TrainingSettings.from_knobs(self.training)

    def _check_schemes(self):
        if self.weight_levels != "integer" and not self.weight_symmetric:
            raise KnobError(
                f"weight_levels: {self.weight_levels} needs weight_symmetric: "
                "True; affine weights have integer levels."
            )
        try:
            self.weight_scheme(8)
            self.activation_scheme(8)
        except PlanError as err:
            text = str(err)
            for field in ("granularity", "group_size"):
                text = re.sub(rf"(?<!_){field}", f"weight_{field}", text)
            raise KnobError(text) from None

    def weight_scheme(self, bits: int) -> QuantizationScheme:
        """Return the scheme of weights of a width."""
        fits = bits in level_widths(self.weight_levels)
        return QuantizationScheme(
            bits=bits,
            symmetric=self.weight_symmetric,
            granularity=self.weight_granularity,
            group_size=self.weight_group_size,
            narrow_range=self.weight_symmetric,
            levels=self.weight_levels if fits else "integer",
        )

    def activation_scheme(
        self, bits: int, minimum: float = -math.inf
    ) -> Optional[QuantizationScheme]:
        """Return the scheme of activations of a width; None for float.

        Arguments
        ---------
        bits : int
            The width.
        minimum : float
            The lowest value seen, for ``activation_signed: auto``.
        """
        if bits == 32:
            return None
        signed = self.activation_signed
        if signed == "auto":
            signed = minimum < 0
        return QuantizationScheme(
            bits=bits,
            symmetric=self.activation_symmetric,
            signed=signed,
            granularity="per_tensor",
            narrow_range=self.activation_symmetric and signed,
        )

    def layer_widths(self, name: str) -> tuple[int, int]:
        """Return the widths of a layer's weights and activations."""
        bits = self.bits
        for pattern, value in self.layer_bits.items():
            if fnmatchcase(name, pattern):
                bits = value
        return parse_bits(bits)

    @property
    def label(self) -> str:
        """A few words that name the quantization in logs."""
        if self.preset is not None:
            return f"preset {self.preset}"
        if self.method == "mixed_precision":
            budget, value = "max_drop", self.max_drop
            if value is None:
                budget, value = "target_size", self.target_size
            return f"{self.method}, {budget} {value:g}"
        weights, activations = parse_bits(self.bits)
        return f"W{weights}A{activations} {self.method}"

    @property
    def needs_data(self) -> bool:
        """Whether something is to be observed or measured."""
        widths = map(parse_bits, (self.bits, *self.layer_bits.values()))
        return (
            self.method != "uniform"
            or self.rounding != "nearest"
            or any(a != 32 for _, a in widths)
        )

    def kept_by(self, name: str) -> Optional[str]:
        """Return the pattern of ``keep`` that matches a layer, or None."""
        return next((p for p in self.keep if fnmatchcase(name, p)), None)

    def search_identity(self) -> dict:
        """Return what, besides weights and data, a search depends on."""
        # Results have the widths and the layers in their names: searches that
        # differ in what they look for only share them.
        ignored = {
            "min_coverage", "search_num_bytes", "plan", "preset", "candidates",
            "max_drop", "target_size", "ranking", "front_points", "subset",
            # They score weights rounded to the nearest.
            "rounding", "rounding_passes",
        }  # fmt: skip
        return {
            # Lists, as they come back from JSON.
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
            if key not in ignored
        }


def _check_number(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KnobError(f"{name} is {value!r}: a number is needed.")
    if not low <= value <= high:
        span = f"at least {low}" if high == float("inf") else f"{low} to {high}"
        raise KnobError(f"{name} is {value}: use {span}.")
