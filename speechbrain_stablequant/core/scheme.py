"""The scheme of a quantized tensor: which integers there are, and scales."""

import math
from dataclasses import dataclass
from typing import Optional

from speechbrain_stablequant.core.options import (
    check_choice,
    check_whole_number,
)
from speechbrain_stablequant.errors import PlanError

__all__ = ["GRANULARITIES", "LEVELS", "QuantizationScheme", "level_bit_widths"]

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
FLOAT_DTYPES = ("bfloat16", "float16")
LEVELS = ("integer", "odd", "ternary")


def level_bit_widths(levels: str) -> tuple[int, ...]:
    """Return the bit widths that kinds of levels exist for.

    Arguments
    ---------
    levels : str
        One of ``LEVELS``.

    Returns
    -------
    tuple of int
        Bit widths.

    Example
    -------
    >>> level_bit_widths("odd"), level_bit_widths("ternary")
    ((1, 2, 3, 4), (2,))
    """
    return {"odd": (1, 2, 3, 4), "ternary": (2,)}.get(levels, (*range(1, 9),))


@dataclass(frozen=True)
class QuantizationScheme:
    """How a tensor of real numbers becomes integers.

    Arguments
    ---------
    bits : int
        Bit width of an integer: 1 to 8, or 16 for a 16-bit float.
    symmetric : bool
        True for a zero point of 0, False for an affine mapping.
    signed : bool
        Whether the integers are signed.
    granularity : str
        ``per_tensor``, ``per_channel`` (output channel) or ``per_group``
        (runs of ``group_size`` values inside an output channel).
    group_size : int, optional
        Number of values that share a scale, for ``per_group`` only.
    narrow_range : bool
        Leave out the lowest integer, so that a signed range is symmetric
        about zero, as TensorRT and ONNX expect of weights. For ``integer``
        levels only; others are symmetric about zero anyway.
    dtype : str
        ``int``, or ``bfloat16`` / ``float16`` when ``bits`` is 16.
    levels : str
        ``integer``: all integers of the bit width. ``odd``: the odd numbers
        from -(2**bits - 1) to 2**bits - 1, none of them zero, for 1 to 4 bits: a
        balanced mid-rise quantizer, as the stretched elastic levels of
        `ParetoQ <https://arxiv.org/abs/2502.02631>`_. ``ternary``: -1, 0 and
        1, for 2 bits; a checkpoint has them in 1.6 bits. Odd and ternary
        levels are symmetric, signed, and for weights only.

    Raises
    ------
    PlanError
        If a field is out of range or two fields contradict each other.

    Example
    -------
    >>> scheme = QuantizationScheme(bits=4)
    >>> scheme.qmin, scheme.qmax
    (-7, 7)
    >>> QuantizationScheme(bits=8, symmetric=False, signed=False).qmax
    255
    >>> scheme = QuantizationScheme(bits=2, levels="odd")
    >>> list(range(scheme.qmin, scheme.qmax + 1, scheme.level_step))
    [-3, -1, 1, 3]
    """

    bits: int = 8
    symmetric: bool = True
    signed: bool = True
    granularity: str = "per_channel"
    group_size: Optional[int] = None
    narrow_range: bool = True
    dtype: str = "int"
    levels: str = "integer"

    def __post_init__(self):
        self._check_width()
        self._check_granularity()
        self._check_levels()

    def _check_width(self):
        if self.bits == 16:
            if self.dtype == "int":
                object.__setattr__(self, "dtype", "bfloat16")
            check_choice("dtype", self.dtype, FLOAT_DTYPES, PlanError)
        elif type(self.bits) is not int or self.bits not in range(1, 9):
            raise PlanError(
                f"bits is {self.bits!r}: use 1 to 8 for integers, 16 for "
                "bfloat16 or float16."
            )
        elif self.dtype != "int":
            raise PlanError(
                f"dtype '{self.dtype}' needs bits: 16, not {self.bits}."
            )

    def _check_granularity(self):
        check_choice("granularity", self.granularity, GRANULARITIES, PlanError)
        grouped = self.granularity == "per_group"
        if grouped != (self.group_size is not None):
            raise PlanError(
                "group_size goes with granularity: per_group and only with "
                f"it (granularity is {self.granularity}, group_size is "
                f"{self.group_size})."
            )
        if grouped:
            check_whole_number(
                "group_size", self.group_size, 1, error=PlanError
            )

    def _check_levels(self):
        check_choice("levels", self.levels, LEVELS, PlanError)
        if self.levels == "integer":
            return
        widths = level_bit_widths(self.levels)
        if self.bits not in widths:
            raise PlanError(
                f"levels '{self.levels}' needs bits: "
                f"{' or '.join(map(str, widths))}, not {self.bits}; use "
                "levels: integer for other bit widths."
            )
        if not (self.symmetric and self.signed):
            raise PlanError(
                f"levels '{self.levels}' needs a symmetric and signed scheme "
                f"(symmetric is {self.symmetric}, signed is {self.signed})."
            )

    @property
    def is_float(self) -> bool:
        """Whether values are stored as 16-bit floats, not integers."""
        return self.dtype != "int"

    @property
    def is_binary(self) -> bool:
        """Whether the two levels are -scale and +scale (1 bit, symmetric)."""
        return self.bits == 1 and self.symmetric and self.signed

    @property
    def is_odd(self) -> bool:
        """Whether the integers are odd numbers: no level stands for zero."""
        return self.levels == "odd"

    @property
    def is_ternary(self) -> bool:
        """Whether the integers are -1, 0 and 1, five to a byte when packed."""
        return self.levels == "ternary"

    @property
    def level_step(self) -> int:
        """Difference of one integer in use to the next."""
        return 2 if self.is_odd or self.is_binary else 1

    @property
    def qmin(self) -> int:
        """Lowest integer in use."""
        if self.is_odd or self.is_binary or self.is_ternary:
            return -self.qmax
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        # One bit has no integer to spare for a narrow range; a symmetric
        # unsigned range would lose the one that stands for zero.
        spare = self.bits > 1 and (self.signed or not self.symmetric)
        return low + int(self.narrow_range and spare)

    @property
    def qmax(self) -> int:
        """Highest integer in use."""
        if self.is_odd or self.is_binary:
            return 2**self.bits - 1
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def scale_shape(self, channels: int, count: int) -> tuple[int, int]:
        """Return the shape of the scales of rows with ``count`` values each."""
        if self.granularity == "per_tensor":
            return 1, 1
        if self.group_size is None:
            return channels, 1
        return channels, math.ceil(count / min(self.group_size, count))

    def describe(self) -> str:
        """Return a few words for a table."""
        if self.is_float:
            return self.dtype
        kind = "symmetric" if self.symmetric else "affine"
        if self.levels != "integer":
            kind = f"{self.levels} {kind}"
        sign = "int" if self.signed else "uint"
        where = self.granularity.replace("per_", "per ")
        if self.group_size:
            where += f" of {self.group_size}"
        return f"{sign}{self.bits} {kind} {where}"
