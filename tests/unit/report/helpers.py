"""The report of a small search, with a plan and its coverage."""

import torch

from speechbrain_stablequant.core.plan import (
    InputPlan,
    LayerPlan,
    QuantizationPlan,
    QuantizationScheme,
)
from speechbrain_stablequant.methods.calibration import ActivationHistogram
from speechbrain_stablequant.methods.coverage import Coverage, ParameterCoverage
from speechbrain_stablequant.methods.pipeline import Planned

NAN = float("nan")
# name, kind, bytes in float, plan
LAYERS = (
    ("model.conv1", "Conv1d", 4000, "W8A8"),
    ("model.conv2", "Conv1d", 8000, "W4A8"),
    ("model.embed", "Embedding", 2000, "W4"),
    ("model.fc", "Linear", 1000, "W32"),
)
DISTANCES = {"W4A8": 0.02, "W8A8": 0.0001}


def plan_row(ratio, value, change, low, high, distance, bits, **marks):
    """Return a plan of the front, as a search reports it."""
    return {
        "name": f"{ratio:.4f}",
        "num_bytes": int(15_000 * ratio),
        "ratio": ratio,
        "distance": distance,
        "predicted_distance": distance,
        "value": value,
        "change": change,
        "low": low,
        "high": high,
        "bits": bits,
        "measured": True,
        "efficient": marks.get("efficient", False),
        "chosen": marks.get("chosen", False),
    }


def search_report() -> dict:
    """Return what a search reports: five plans, one of them broken."""
    sensitivity = [
        {
            "layer": name,
            "kind": kind,
            "bits": bits,
            "num_bytes": size * int(bits[1]) // 32,
            "saved_num_bytes": size - size * int(bits[1]) // 32,
            "distance": distance * place,
            "change": 0.3 if name == "model.fc" else 0.01,
            "low": 0.1 if name == "model.fc" else -0.1,
            "high": 0.5 if name == "model.fc" else 0.1,
        }
        for place, (name, kind, size, _) in enumerate(LAYERS, 1)
        for bits, distance in DISTANCES.items()
    ]
    front = [
        plan_row(0.13, 45.0, 41.8, 40.0, 43.0, NAN, {"W4A8": 4}, efficient=True),
        plan_row(
            0.2, 3.26, 0.05, -0.1, 0.2, 0.01, {"W32": 1, "W8A8": 1, "W4A8": 2},
            efficient=True, chosen=True,
        ),
        plan_row(0.25, 3.4, 0.19, 0.1, 0.3, 0.02, {"W8A8": 4}),
        plan_row(0.26, NAN, NAN, None, None, NAN, {"W8A8": 4}),
        plan_row(1.0, 3.21, 0.0, 0.0, 0.0, 0.0, {"W32": 4}, efficient=True),
    ]  # fmt: skip
    return {
        "method": "mixed_precision",
        "metric": "EER",
        "unit": "points",
        "float": 3.21,
        "budget": {"max_drop": 0.07},
        "candidates": ["W4A8", "W8A8", "W32"],
        "float_num_bytes": 15_000,
        "sensitivity": sensitivity,
        "front": front,
        "chosen": front[1],
        "joint": {
            "metric": "EER",
            "float": 3.21,
            "quantized": 3.26,
            "change": 0.05,
            "low": -0.1,
            "high": 0.2,
        },
        "cost": {
            "evaluations": 60,
            "forward_passes": 6.0,
            "computed_passes": 2.5,
            "resumed": 4,
            "seconds": 12.3,
        },
    }


def without_metric(search: dict) -> dict:
    """Return the report of a search that only had distances."""
    for row in (*search["sensitivity"], *search["front"]):
        row.update(dict.fromkeys(("change", "low", "high"), None))
    for row in search["front"]:
        row["value"] = None
    return {**search, "metric": None, "float": None, "joint": None}


def planned(search: dict) -> Planned:
    """Return a plan for the layers of the report."""
    eight = QuantizationScheme(bits=8, granularity="per_tensor")
    layers, rows = {}, []
    for name, kind, size, bits in LAYERS:
        after = size
        if bits != "W32":
            layers[name] = LayerPlan(
                QuantizationScheme(bits=int(bits[1])),
                kind=kind,
                inputs={"x": InputPlan(eight, -1.0, 1.0)}
                if "A" in bits
                else {},
            )
            after = size * int(bits[1]) // 32
        status = "quantized" if name in layers else "kept"
        for short, is_weight in (("weight", True), ("bias", False)):
            rows.append(
                ParameterCoverage(
                    name=f"{name}.{short}",
                    status=status if is_weight else "kept",
                    detail="",
                    num_bytes=size,
                    quantized_num_bytes=after,
                    is_weight=is_weight,
                )
            )
    plan = QuantizationPlan(layers, method="mixed_precision")
    return Planned(plan, Coverage(rows), search)


def with_statistics(planned: Planned) -> Planned:
    """Return a plan with what a calibration saw of all its layers."""
    generator = torch.Generator().manual_seed(0)
    for name, *_ in LAYERS:
        histogram = ActivationHistogram()
        histogram.observe(2 * torch.randn(4000, generator=generator))
        planned.statistics[name] = {"x": histogram}
    return planned


def flagging_search(units: int = 3) -> dict:
    """Return what ``method: stablequant`` reports: the first unit is bad."""
    names = [f"model.conv{i + 1}" for i in range(units)]
    changes = [12.5, *(0.1 * (i % 3) for i in range(units - 1))]
    return {
        "sensitivity": {
            name: {
                "change": change,
                "low": change - 0.2,
                "high": change + 0.2,
                "confidence": 0.95,
                "scored_on": "all",
                "flagged": change > 0.25,
            }
            for name, change in zip(names, changes)
        },
        "flagged": names[:1],
        "percentiles": {
            names[0]: {
                "chosen": 99.9,
                "tried": [99.9, 100.0],
                "confirmed": {"99.9": {"change": 0.1, "low": 0, "high": 0.2}},
            }
        },
        "joint": {
            "metric": "WER",
            "float": 6.0,
            "quantized": 6.1,
            "change": 0.1,
            "low": -0.1,
            "high": 0.3,
        },
        "cost": {
            "evaluations": 4,
            "forward_passes": 2.0,
            "computed_passes": 1.0,
            "resumed": 0,
        },
    }
