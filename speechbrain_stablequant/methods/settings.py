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
from speechbrain_stablequant.core.options import (
    check_choice,
    check_flag,
    check_list,
    check_names,
    check_number,
    check_numbers,
    check_whole_number,
    field_names,
)
from speechbrain_stablequant.core.plan import (
    WEIGHT_OBSERVERS,
    QuantizationScheme,
)
from speechbrain_stablequant.core.scheme import LEVELS, level_bit_widths
from speechbrain_stablequant.errors import KnobError, PlanError
from speechbrain_stablequant.methods.calibration import OBSERVERS, TAIL_RULES
from speechbrain_stablequant.methods.presets import preset_options
from speechbrain_stablequant.methods.registry import METHODS, ROUNDINGS
from speechbrain_stablequant.methods.training_settings import TrainingSettings

__all__ = ["Settings"]

DEFAULT_CANDIDATES = ("W2A8", "W3A8", "W4A8", "W8A8", "W16", "W32")
DEFAULT_PERCENTILES = (
    100.0, 99.999, 99.99, 99.95, 99.9, 99.8, 99.5, 99.0, 98.0,
)  # fmt: skip
_LIMITS = (
    ("percentile", 0, 100),
    ("min_coverage", 0, 1),
    ("subset", 0, 1),
    ("flag_threshold", 0, math.inf),
    ("calibration_utterances", 1, math.inf),
    ("search_utterances", 1, math.inf),
    ("search_num_bytes", 0, math.inf),
    ("front_points", 2, 100),
    ("max_drop", 0, math.inf),
    ("target_size", 0, 1),
)


@dataclass(frozen=True)
class Settings:
    """All options of a quantization with their defaults.

    Arguments
    ---------
    bits : str, int or dict
        Bit widths, see `parse_bits`.
    method : str
        ``stablequant``: layer-adaptive clipping by the recipe's metric.
        ``mixed_precision``: bit widths layer by layer, under a budget.
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
        ``ternary`` (of 2 bits). Others stay ``integer``.
    rounding : str
        ``nearest``, or ``gptq``: weights make up for each other's rounding
        errors on the calibration data.
    rounding_passes : int, optional
        ``gptq``: calibration passes, at most. By default one for each block, 16
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
        Bit widths by layer name pattern, over ``bits``; the last match counts.
    flag_threshold : float
        ``stablequant``: a block is flagged when the metric rises by more than
        this many points (paper: 0.25).
    percentiles : list of float
        ``stablequant``: cut-offs tried for flagged blocks.
    tail : str
        ``drop`` or ``fold``: what becomes of the tail beyond a cut-off.
    candidates : list
        ``mixed_precision``: bit widths that a layer may get; 32 is float.
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
        If a value is out of range; `from_options` also names unknown options.
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
    def from_options(cls, options: Mapping[str, Any], owner: str = "quantize"):
        """Build settings from keyword arguments of the user."""
        check_names(owner, options, field_names(cls))
        return cls(**{**preset_options(options.get("preset")), **options})

    def __post_init__(self):
        for name, choices in (
            ("method", METHODS),
            ("observer", OBSERVERS),
            ("weight_observer", WEIGHT_OBSERVERS),
            ("weight_levels", LEVELS),
            ("rounding", ("nearest", *ROUNDINGS)),
            ("tail", TAIL_RULES),
            ("ranking", ("distance", "metric")),
            ("activation_signed", (True, False, "auto")),
        ):
            check_choice(name, getattr(self, name), choices)
        for name in ("weight_symmetric", "activation_symmetric"):
            check_flag(name, getattr(self, name))
        check_numbers(self, _LIMITS)
        if self.rounding_passes is not None:
            check_whole_number("rounding_passes", self.rounding_passes, 1)
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        check_list("percentiles", self.percentiles, "[100, 99.9, 99]")
        for value in self.percentiles:
            check_number("percentiles", value, 50, 100)
        self._check_bits()
        self._check_method()
        self._check_schemes()

    def _check_bits(self):
        check_list("candidates", self.candidates, "[W4A8, W8A8, W32]")
        if not self.candidates:
            raise KnobError("candidates is empty: give at least one.")
        training = TrainingSettings.from_options(self.training)
        for where, bits in (
            ("", self.bits),
            *((f"layer_bits, '{p}': ", b) for p, b in self.layer_bits.items()),
            *(("candidates: ", bits) for bits in self.candidates),
            ("training: first_last: ", training.first_last),
        ):
            try:
                parse_bits(bits)
            except KnobError as err:
                raise KnobError(f"{where}{err}") from None

    def _check_method(self):
        """Refuse options that do not go with the method, or one another."""
        if self.plan is not None and self.rounding != "nearest":
            raise KnobError(
                f"rounding: {self.rounding} needs calibration data, and a "
                "given plan (plan: path.json) is applied without any: set one "
                "of them to its default."
            )
        if self.method == "stablequant":
            if self.observer not in ("mse", "entropy"):
                raise KnobError(
                    f"observer '{self.observer}' goes with method: uniform; "
                    "stablequant chooses scales by mse or entropy."
                )
        elif self.method == "mixed_precision":
            if (self.max_drop is None) == (self.target_size is None):
                raise KnobError(
                    "method: mixed_precision needs a budget: max_drop (fewest "
                    "bytes within it) or target_size (best metric within it), "
                    "one of them; set the other to null."
                )
        elif self.method == "quantization_aware":
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
        return TrainingSettings.from_options(self.training)

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
        """Return the scheme of weights of a bit width."""
        fits = bits in level_bit_widths(self.weight_levels)
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
        """Return the scheme of activations of a bit width; None for float.

        Arguments
        ---------
        bits : int
            The bit width.
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

    def bit_widths(self, name: str) -> tuple[int, int]:
        """Return the bit widths of a layer's weights and activations."""
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
        """Whether calibration or a search needs data."""
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
        # Results have the bit widths and the layers in their names, so that
        # searches that differ only in what they look for can share them.
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
