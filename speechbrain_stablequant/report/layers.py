"""Layers of a plan as rows of plain data: each, by unit and by scheme."""

from collections.abc import Mapping

from speechbrain_stablequant.core.plan import InputPlan, LayerPlan

__all__ = ["by_scheme", "by_unit", "describe_layer"]


def describe_layer(name: str, plan: LayerPlan, num_bytes=None) -> dict:
    """Return what a plan says of a layer.

    Arguments
    ---------
    name : str
        Name of the layer.
    plan : LayerPlan
        How it is quantized.
    num_bytes : int, optional
        Bytes of its weights as stored.
    """
    scheme = plan.weight
    return {
        "name": name,
        "kind": plan.kind,
        "unit": plan.unit,
        "weights": scheme.describe(),
        "bits": scheme.bits,
        "granularity": scheme.granularity,
        "levels": scheme.levels,
        "rounding": plan.rounding,
        "inputs": {k: _describe_input(v) for k, v in plan.inputs.items()},
        "num_bytes": num_bytes,
    }


def _describe_input(plan: InputPlan) -> dict:
    """Return what a plan says of an input."""
    return {
        "scheme": plan.scheme.describe(),
        "bits": plan.scheme.bits,
        "range": [plan.low, plan.high],
        "observer": plan.observer,
        "percentile": plan.percentile,
        "clipped": plan.clipped,
    }


def _schemes(row: dict) -> tuple[str, str]:
    """Return the schemes of weights and inputs of a layer, for a table."""
    inputs = sorted({i["scheme"] for i in row["inputs"].values()})
    return row["weights"], " / ".join(inputs) or "float"


def by_scheme(rows: list[dict]) -> list[dict]:
    """Count layers and bytes for each pair of schemes, most layers first."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault(_schemes(row), []).append(row)
    found = [
        {
            "weights": weights,
            "inputs": inputs,
            "layers": len(members),
            "num_bytes": _total(members),
        }
        for (weights, inputs), members in groups.items()
    ]
    return sorted(found, key=lambda group: -group["layers"])


def by_unit(rows: list[dict]) -> list[dict]:
    """Sum up the layers of each search unit, in the order of the plan."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["unit"] or row["name"], []).append(row)
    return [_unit(name, members) for name, members in groups.items()]


def _unit(name: str, rows: list[dict]) -> dict:
    inputs = [i for row in rows for i in row["inputs"].values()]
    pairs = [_schemes(row) for row in rows]
    return {
        "name": name,
        "layers": len(rows),
        "weights": " / ".join(sorted({w for w, _ in pairs})),
        "inputs": " / ".join(sorted({i for _, i in pairs})),
        "lowest_percentile": min(
            (i["percentile"] for i in inputs), default=None
        ),
        "most_clipped": max((i["clipped"] for i in inputs), default=None),
        "num_bytes": _total(rows),
    }


def _total(rows: list[Mapping]):
    """Return the bytes of some layers, None where one is not known."""
    sizes = [row["num_bytes"] for row in rows]
    return None if None in sizes else sum(sizes)
