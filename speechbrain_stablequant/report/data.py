"""Plain data of a report: layers, histograms, items and the environment."""

import contextlib
import platform
from importlib import metadata
from pathlib import Path

import speechbrain
import torch

from speechbrain_stablequant.core.plan import LayerPlan
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.runtime.processor import detect_processor

__all__ = [
    "FLOAT",
    "bits_of",
    "environment",
    "histogram_rows",
    "item_rows",
    "layer_rows",
]

FLOAT = "W32"


def bits_of(plan: LayerPlan) -> str:
    """Return the bit widths of a layer as options spell them: ``W8A8``, ``W4``."""
    inputs = {p.scheme.bits for p in plan.inputs.values()}
    return f"W{plan.weight.bits}" + (f"A{max(inputs)}" if inputs else "")


def layer_rows(planned: Planned) -> list[dict]:
    """Return one row for each layer with weights, in the order of the model.

    Arguments
    ---------
    planned : Planned
        Any plan with its coverage.

    Returns
    -------
    list of dict
        ``layer``, ``kind``, ``unit`` and ``rounding`` (empty for layers in
        float), ``bits`` (``W8A8``, ``W32`` for float), ``float_num_bytes`` and ``num_bytes``
        of its weights in a checkpoint, of which ``scale_num_bytes`` scales.
    """
    rows: dict[str, dict] = {}
    for row in planned.coverage.rows:
        if not row.is_weight:
            continue
        name = row.name.rpartition(".")[0]
        plan = planned.plan.layers.get(name)
        plan = plan if row.status == "quantized" else None
        bits = FLOAT if plan is None else bits_of(plan)
        # A layer may have several weights, some of them in float.
        found = rows.setdefault(
            f"{name} {bits}",
            {
                "layer": name,
                "kind": "" if plan is None else plan.kind,
                "unit": "" if plan is None else plan.unit,
                "rounding": "" if plan is None else plan.rounding,
                "bits": bits,
                "float_num_bytes": 0,
                "num_bytes": 0,
                "scale_num_bytes": 0,
            },
        )
        found["float_num_bytes"] += row.num_bytes
        found["num_bytes"] += row.quantized_num_bytes
        found["scale_num_bytes"] += row.scale_num_bytes
    return list(rows.values())


def histogram_rows(planned: Planned) -> list[dict]:
    """Return what calibration saw enter each quantized layer.

    Arguments
    ---------
    planned : Planned
        A plan; a given one has no statistics.

    Returns
    -------
    list of dict
        ``layer``, ``input`` and the fields of `ActivationHistogram.coarse`.
        The ranges chosen are in the report's ``clipping``.
    """
    layers = planned.plan.layers
    return [
        {"layer": name, "input": slot, **histogram.coarse()}
        for name, inputs in planned.statistics.items()
        for slot, histogram in inputs.items()
        if name in layers and slot in layers[name].inputs
    ]


def item_rows(
    before: dict[str, tuple[Metric, list[Item]]],
    after: dict[str, tuple[Metric, list[Item]]],
) -> dict[str, dict]:
    """Return what each utterance adds to each metric, of both passes.

    Items of metrics over pairs of utterances (EER) are embeddings of a kilobyte
    each: they are left out, and ``pairs`` says so.

    Arguments
    ---------
    before, after : dict
        Metric and items by metric name, of the float and the quantized pass.

    Returns
    -------
    dict
        By metric: ``factor``, ``unit``, ``kind`` (class of the metric),
        ``pairs``, and ``float`` and ``quantized``, each a list of key, errors
        and weight, or None.
    """
    found = {}
    for name, (metric, items) in after.items():
        float_items = before[name][1] if name in before else None
        pairs = any(item.vector for item in items)
        found[name] = {
            "factor": metric.factor,
            "unit": metric.unit,
            "kind": type(metric).__name__,
            "pairs": pairs,
            "float": None if pairs else _sums(float_items),
            "quantized": None if pairs else _sums(items),
        }
    return found


def _sums(items):
    if items is None:
        return None
    return [[item.key, item.errors, item.weight] for item in sorted(items)]


def environment() -> dict:
    """Return hardware and versions, without which a measured time says little.

    Returns
    -------
    dict
        Plain data: processor, threads and versions.

    Example
    -------
    >>> environment()["threads"] >= 1
    True
    """
    runtimes = {}
    for name in ("openvino", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            runtimes[name] = metadata.version(name)
    return {
        "processor": _processor(),
        "features": sorted(detect_processor().features),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "speechbrain": speechbrain.__version__,
        **runtimes,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1] for line in lines if "model name" in line)
    found = next(names, "").strip()
    return found or platform.processor() or platform.machine()
