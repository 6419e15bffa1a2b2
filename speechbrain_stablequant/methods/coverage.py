"""The coverage table: what becomes of every parameter, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from torch import nn

from speechbrain_stablequant.core.packing import (
    packed_num_bytes,
    scale_num_bytes,
)
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import CoverageError
from speechbrain_stablequant.layers import (
    Conversion,
    quantized_class,
    unsupported_reason,
)
from speechbrain_stablequant.methods.settings import Settings

__all__ = ["Coverage", "ParameterCoverage", "cover"]

QUANTIZED, KEPT, UNSUPPORTED = "quantized", "kept", "unsupported"
_NORMS = (nn.LayerNorm, nn.GroupNorm)
_SMALL = 1024  # values; smaller raw parameters are not worth a class


@dataclass(frozen=True)
class ParameterCoverage:
    """What becomes of one parameter.

    Arguments
    ---------
    name : str
        Qualified name in the prepared model.
    status : str
        ``quantized``, ``kept`` or ``unsupported``.
    detail : str
        How, or why.
    num_bytes : int
        Size in float.
    quantized_num_bytes : int
        Size in a checkpoint: packed integers and scales, or ``num_bytes``.
    is_weight : bool
        Whether it counts for coverage: two or more dimensions, not a norm.
    by_request : bool
        Whether the user asked to keep it; then it does not count either.
    scale_num_bytes : int
        Of ``quantized_num_bytes``, the part of the scales and zero points.
    """

    name: str
    status: str
    detail: str
    num_bytes: int
    quantized_num_bytes: int
    is_weight: bool
    by_request: bool = False
    scale_num_bytes: int = 0


@dataclass(frozen=True)
class Coverage:
    """The table over all parameters of a model."""

    rows: list[ParameterCoverage]

    @property
    def fraction(self) -> float:
        """Part of the weight bytes that is quantized, 0 to 1.

        What the user asked to keep counts neither way.
        """
        counted = [r for r in self.rows if r.is_weight and not r.by_request]
        total = sum(r.num_bytes for r in counted)
        done = sum(r.num_bytes for r in counted if r.status == QUANTIZED)
        return done / total if total else 1.0

    @property
    def num_bytes(self) -> int:
        """Size of all parameters in float."""
        return sum(r.num_bytes for r in self.rows)

    @property
    def quantized_num_bytes(self) -> int:
        """Size of all parameters as planned."""
        return sum(r.quantized_num_bytes for r in self.rows)

    def check(self, min_coverage: float) -> None:
        """Raise when too little is covered.

        Raises
        ------
        CoverageError
            With the table of what is not quantized.
        """
        if self.fraction < min_coverage:
            raise CoverageError(
                f"Only {self.fraction:.1%} of the weight bytes would be "
                f"quantized; min_coverage asks for {min_coverage:.1%}. Not "
                f"quantized:\n{self.table(only_open=True)}\nName what is to "
                "stay in float in `keep`, or lower `min_coverage`."
            )

    def table(self, only_open: bool = False) -> str:
        """Return the table as text, largest parameters first.

        Arguments
        ---------
        only_open : bool
            Leave out what is quantized and what is too small to matter.
        """
        rows = sorted(self.rows, key=lambda r: -r.num_bytes)
        if only_open:
            rows = [r for r in rows if r.status != QUANTIZED and r.is_weight]
        if not rows:
            return "(nothing)"
        width = max(len(r.name) for r in rows)
        return "\n".join(
            f"{r.name:<{width}}  {r.num_bytes:>12,} B  {r.status:<11}  {r.detail}"
            for r in rows
        )

    def to_list(self) -> list[dict]:
        """Return the rows as plain data."""
        return [vars(row).copy() for row in self.rows]


def cover(
    conversion: Conversion,
    plan: QuantizationPlan,
    settings: Settings,
    notes: Optional[Mapping[str, str]] = None,
) -> Coverage:
    """Say what becomes of every parameter under a plan.

    Arguments
    ---------
    conversion : Conversion
        The prepared model, all layers in float.
    plan : QuantizationPlan
        What is quantized; layers that it left in float by choice count as
        requested.
    settings : Settings
        For what the user asked to keep.
    notes : dict, optional
        A remark by layer name, for example that calibration never reached it.

    Returns
    -------
    Coverage
        One row for each parameter, shared ones once.
    """
    root = conversion.root
    rows: dict[int, ParameterCoverage] = {}
    for name, module in root.named_modules():
        for short, parameter in module._parameters.items():
            if parameter is None:
                continue
            row = _row(root, name, short, parameter, plan, settings, notes)
            known = rows.get(id(parameter))
            if known is None or row.status == QUANTIZED != known.status:
                rows[id(parameter)] = row
    return Coverage(list(rows.values()))


def _row(root, name, short, parameter, plan, settings, notes):
    module = root.get_submodule(name)
    full = f"{name}.{short}" if name else short
    num_bytes = parameter.nbytes
    cls = quantized_class(module)
    ours = cls is not None and short in cls.quantizable_weights(module)
    after, scales, by_request = num_bytes, 0, False
    if ours and name in plan.layers:
        status, layer = QUANTIZED, plan.layers[name]
        shape = cls.to_rows(module, short, parameter).shape
        after = packed_num_bytes(shape, layer.weight)
        scales = scale_num_bytes(shape, layer.weight)
        detail = _describe(layer, (notes or {}).get(name))
    elif ours:
        status, detail, by_request = _why_left_out(name, root, settings, plan)
    elif not _is_weight(module, parameter):
        status, detail = KEPT, "bias, norm or gain"
    elif parameter.numel() < _SMALL:
        status, detail = KEPT, f"fewer than {_SMALL} values"
    elif settings.kept_by(full) or settings.kept_by(name):
        status, detail, by_request = KEPT, "by request (keep)", True
    else:
        status = UNSUPPORTED
        detail = (
            f"{type(module).__name__} has no quantized version: register one "
            "(speechbrain_stablequant.layers.register) or add it to `keep`"
        )
    return ParameterCoverage(
        name=full,
        status=status,
        detail=detail,
        num_bytes=num_bytes,
        quantized_num_bytes=after,
        is_weight=_is_weight(module, parameter),
        by_request=by_request,
        scale_num_bytes=scales,
    )


def _is_weight(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or kernel, not a gain of any shape.

    SpeechBrain's ``LayerNorm`` may go over two axes, frequency and channel.
    """
    return parameter.dim() >= 2 and not isinstance(module, _NORMS)


def _why_left_out(name: str, root: nn.Module, settings: Settings, plan):
    pattern = settings.kept_by(name)
    if pattern is not None:
        return KEPT, f"by request (keep: {pattern})", True
    if settings.bit_widths(name)[0] == 32:
        return KEPT, "by request (32 bits)", True
    if name in plan.float_layers:
        return KEPT, "32 bits, by the plan", True
    reason = unsupported_reason(root, name)
    if reason is not None:
        return UNSUPPORTED, reason, False
    return KEPT, "not in the plan", False


def _describe(plan: LayerPlan, note: Optional[str]) -> str:
    text = f"weight {plan.weight.describe()}"
    widths = sorted({p.scheme.describe() for p in plan.inputs.values()})
    text += f", input {' / '.join(widths)}" if widths else ", input float"
    return f"{text} ({note})" if note else text
