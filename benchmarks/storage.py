"""Storage and run time of low-bit encoders as the literature counts them.

`Efficient Speech Representation Learning with Low-Bit Quantization
<https://arxiv.org/abs/2301.00652>`_ (Yeh, Hsu, Tomasello and Mohamed) gives a
storage in megabytes and an *estimated* run time for encoders of HuBERT's size.
The rules here were fitted to its table, so that results can stand beside it.
They are accounting, not measurements: sizes on disk come from a checkpoint's
file (`speechbrain_stablequant.core.packing.packed_num_bytes` predicts them), and
speed from running a model.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Optional

from torch import nn
from torch.nn.modules.conv import _ConvNd

from speechbrain_stablequant.core.plan import (
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.errors import StableQuantError, nearest
from speechbrain_stablequant.layers import Conversion, quantizable_layers

__all__ = [
    "PAPER_OVERHEAD",
    "PAPER_SCALE_NUM_BYTES",
    "Storage",
    "estimated_run_time",
    "estimated_run_time_of",
    "paper_num_bytes",
    "storage_of",
]

PAPER_SCALE_NUM_BYTES = 12 * 3 * 768 * 2
PAPER_OVERHEAD = 0.0925
_FLOAT_BITS = 32
_NUM_BYTES = 2  # of an unquantized parameter, and of a scale


def paper_num_bytes(
    num_parameters: int,
    num_quantized: int = 0,
    bits: float = _FLOAT_BITS,
    num_scale_bytes: int = PAPER_SCALE_NUM_BYTES,
) -> int:
    """Return a model's storage by the rule of arXiv 2301.00652.

    Each unquantized parameter counts 2 bytes and each quantized one
    ``bits / 8``.

    Arguments
    ---------
    num_parameters : int
        All parameters.
    num_quantized : int
        Those of them that are quantized.
    bits : float
        Width of the quantized ones; their mean where widths differ.
    num_scale_bytes : int
        Size of the scales, counted where anything is quantized. The default
        is a fit, as the paper does not say what its scales take: 12 layers x
        3 x 768 values of 2 bytes, 0.055 MB, explain its figures.

    Returns
    -------
    int
        Bytes; the paper's megabytes are 10**6 of them.

    Raises
    ------
    StableQuantError
        If counts or widths are impossible.

    Example
    -------
    The table of the paper: the baseline, 2 bits, 1 bit (25.23 there) and
    DistilHuBERT, in MB. Quantized are the linear weights of 12 layers.

    >>> linear = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    >>> round(paper_num_bytes(92_210_000) / 1e6, 2)
    184.42
    >>> round(paper_num_bytes(92_210_000, linear, bits=2) / 1e6, 2)
    35.84
    >>> round(paper_num_bytes(92_210_000, linear, bits=1) / 1e6, 2)
    25.22
    >>> round(paper_num_bytes(23_490_000) / 1e6, 2)
    46.98
    """
    if not 0 <= num_quantized <= num_parameters:
        raise StableQuantError(
            f"num_quantized is {num_quantized}: it must be between 0 and "
            f"num_parameters, {num_parameters}."
        )
    _check_bits(bits)
    plain = _NUM_BYTES * (num_parameters - num_quantized)
    if not num_quantized:
        return plain
    return plain + math.ceil(num_quantized * bits / 8) + num_scale_bytes


def estimated_run_time(bits: float, overhead: float = PAPER_OVERHEAD) -> float:
    """Return an estimate of the run time relative to the float model.

    ``overhead + (1 - overhead) * bits / 32`` is an ESTIMATE, not a
    measurement: the run time of arXiv 2301.00652 that its column of the same
    name follows. No kernel was timed, neither there nor here.

    Of DistilHuBERT, with 2 of the 12 layers in float, that column has 0.73,
    which no rule in bits can give, nor is one provided here: the abstract of
    DistilHuBERT (arXiv 2110.01900) has the same number as "73% faster", which
    would be 0.58 of the time.

    Arguments
    ---------
    bits : float
        Width of the weights, 32 for float; their mean where widths differ.
    overhead : float
        Part of the float model's time that quantization does not change. The
        default is a fit: anything from 0.0881 to 0.0967 gives the two points
        of the paper.

    Returns
    -------
    float
        1.0 for the float model.

    Raises
    ------
    StableQuantError
        If ``bits`` or ``overhead`` is impossible.

    Example
    -------
    >>> [round(estimated_run_time(bits), 2) for bits in (32, 2, 1)]
    [1.0, 0.15, 0.12]
    """
    _check_bits(bits)
    if not 0 <= overhead <= 1:
        raise StableQuantError(f"overhead is {overhead}: use 0 to 1.")
    return overhead + (1 - overhead) * bits / _FLOAT_BITS


def estimated_run_time_of(
    root: nn.Module,
    plan: Optional[QuantizationPlan],
    overhead: float = PAPER_OVERHEAD,
) -> float:
    """Return `estimated_run_time` of a model under a plan.

    Bits are the mean over the weights of all layers that could be quantized,
    each weight counting once and as 32 bits where the plan leaves it in float.
    Convolutions and embeddings are left out: ``overhead`` was fitted with the
    encoder's convolutions in it.

    Arguments
    ---------
    root : torch.nn.Module
        The float model.
    plan : QuantizationPlan or None
        Names relative to ``root``; None for the float model.
    overhead : float
        See `estimated_run_time`.

    Returns
    -------
    float
        An ESTIMATE; 1.0 for the float model.

    Example
    -------
    >>> from speechbrain_stablequant.core.plan import LayerPlan
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> plan = QuantizationPlan({"0": LayerPlan(QuantizationScheme(bits=2))})
    >>> round(estimated_run_time_of(model, plan), 3)  # of 17 bits
    0.575
    """
    bits = _mean_bits(_weights(root, plan))
    return estimated_run_time(bits, overhead)


@dataclass(frozen=True)
class Storage:
    """A model's size and time as arXiv 2301.00652 counts them.

    Arguments
    ---------
    num_parameters : int
        All parameters, shared ones once.
    num_quantized : int
        Those that the plan makes integers.
    num_scale_bytes : int
        Size of their scales, 2 bytes each, and of zero points, 1 byte each.
    paper_num_bytes : int
        Storage by the paper's rule, with these scales.
    float_num_bytes : int
        Size of the float parameters as they are: 4 bytes each in float32. The
        paper's own baseline has 2, see ``paper_float_num_bytes``.
    estimated_run_time : float
        ESTIMATE relative to the float model, see `estimated_run_time_of`.
    """

    num_parameters: int
    num_quantized: int
    num_scale_bytes: int
    paper_num_bytes: int
    float_num_bytes: int
    estimated_run_time: float

    @property
    def paper_float_num_bytes(self) -> int:
        """Storage of the float model by the paper's rule."""
        return paper_num_bytes(self.num_parameters)


def storage_of(root: nn.Module, plan: Optional[QuantizationPlan]) -> Storage:
    """Count a model's storage under a plan, widths mixed or not.

    A weight counts the ``bits`` of its scheme, as in the paper. So ternary
    weights count 2 bits, although a checkpoint has them in 1.6, and words are
    not filled up. What has 16 bits counts 2 bytes, like all that stays float.

    Arguments
    ---------
    root : torch.nn.Module
        The float model; as before on return. May be on the ``meta`` device.
    plan : QuantizationPlan or None
        Names relative to ``root``; None for the float model.

    Returns
    -------
    Storage
        The counts.

    Raises
    ------
    PlanError
        If the model is quantized already.
    StableQuantError
        If the plan names a layer that the model cannot quantize.

    Example
    -------
    >>> from speechbrain_stablequant.core.plan import LayerPlan
    >>> model = nn.Linear(64, 10)
    >>> plan = QuantizationPlan({"": LayerPlan(QuantizationScheme(bits=2))})
    >>> storage = storage_of(model, plan)
    >>> storage.num_quantized, storage.num_scale_bytes
    (640, 20)
    >>> storage.paper_num_bytes  # 640 / 4 + 20, and 2 for each bias
    200
    """
    parameters = list(root.parameters())
    num_parameters = sum(p.numel() for p in parameters)
    weights = _weights(root, plan)
    integers = [w for w in weights if w.is_integer]
    num_quantized = sum(w.num_values for w in integers)
    num_scale_bytes = sum(
        _scale_num_bytes(w.channels, w.num_values, w.scheme) for w in integers
    )
    bits = sum(w.num_values * w.scheme.bits for w in integers)
    return Storage(
        num_parameters=num_parameters,
        num_quantized=num_quantized,
        num_scale_bytes=num_scale_bytes,
        paper_num_bytes=paper_num_bytes(
            num_parameters,
            num_quantized,
            # Exact: a float mean could round up to a byte more.
            Fraction(bits, num_quantized) if num_quantized else _FLOAT_BITS,
            num_scale_bytes,
        ),
        float_num_bytes=sum(p.numel() * p.element_size() for p in parameters),
        estimated_run_time=estimated_run_time(_mean_bits(weights)),
    )


class _Weight(NamedTuple):
    """A weight that could be quantized; no scheme where it stays float."""

    channels: int
    num_values: int
    in_overhead: bool
    scheme: Optional[QuantizationScheme]

    @property
    def is_integer(self) -> bool:
        return self.scheme is not None and not self.scheme.is_float


def _weights(root, plan: Optional[QuantizationPlan]) -> list[_Weight]:
    """Return the weights of all layers, those that layers share once."""
    plans = {} if plan is None else plan.layers
    found: dict[int, _Weight] = {}
    # Names and weights of a plan are those of a prepared model: weight norm
    # fused, attention decomposed.
    with Conversion(root):
        layers = list(quantizable_layers(root))
        names = [name for name, _, _ in layers]
        for name in plans:
            if name not in names:
                raise StableQuantError(
                    f"The plan names a layer '{name}' that cannot be "
                    "quantized in this model. Use the model that the plan was "
                    "made for." + nearest(name, names)
                )
        for name, module, cls in layers:
            scheme = plans[name].weight if name in plans else None
            for short, weight in cls.quantizable_weights(module).items():
                if scheme is None and id(weight) in found:
                    continue
                rows = cls.to_rows(module, short, weight.detach())
                in_overhead = isinstance(module, (_ConvNd, nn.Embedding))
                found[id(weight)] = _Weight(
                    rows.shape[0], rows.numel(), in_overhead, scheme
                )
    return list(found.values())


def _mean_bits(weights: list[_Weight]) -> float:
    """Return the mean width of weights, in bits; 32 where there are none."""
    counted = [w for w in weights if not w.in_overhead]
    total = sum(w.num_values for w in counted)
    bits = sum(
        w.num_values * (_FLOAT_BITS if w.scheme is None else w.scheme.bits)
        for w in counted
    )
    return bits / total if total else _FLOAT_BITS


def _scale_num_bytes(channels: int, num_values: int, scheme) -> int:
    """Return the size of a weight's scales and zero points."""
    count = 1 if scheme.granularity == "per_tensor" else channels
    if scheme.granularity == "per_group":
        count *= math.ceil(num_values / channels / scheme.group_size)
    return count * (_NUM_BYTES if scheme.symmetric else _NUM_BYTES + 1)


def _check_bits(bits: float) -> None:
    if not 0 < bits <= _FLOAT_BITS:
        raise StableQuantError(
            f"bits is {bits}: use more than 0 and at most {_FLOAT_BITS}."
        )
