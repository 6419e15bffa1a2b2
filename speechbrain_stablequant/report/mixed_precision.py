"""What a mixed-precision search found: as text, as CSV and as pictures."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional

from speechbrain_stablequant.core.bit_width import parse_bits
from speechbrain_stablequant.core.format import (
    align,
    decimals,
    finite,
    interval,
    is_number,
    number,
)
from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.report.data import (
    FLOAT,
    bits_of,
    layer_rows,
)
from speechbrain_stablequant.report.rows import cost_line

__all__ = [
    "bits_by_type",
    "chosen_bits",
    "front_lines",
    "layer_type",
    "save_front",
]

_MOST_SENSITIVE = 5  # layers named in the table; all are in sensitivity.csv

_FRONT_FIELDS = (
    "name", "num_bytes", "ratio", "value", "change", "low", "high",
    "distance", "predicted_distance", "measured", "efficient", "chosen",
)  # fmt: skip
_SENSITIVITY_FIELDS = (
    "layer", "kind", "bits", "num_bytes", "saved_num_bytes", "distance",
    "change", "low", "high", "chosen",
)  # fmt: skip


# -- bits of a plan ----------------------------------------------------------


def layer_type(name: str) -> str:
    """Return the pattern of a layer and those at like places.

    It can be used as it is in ``layer_bits`` and ``keep``.

    Example
    -------
    >>> layer_type("model.blocks.2.res2net_block.blocks.0.conv.conv")
    'model.blocks.*.res2net_block.blocks.*.conv.conv'
    """
    return ".".join("*" if p.isdigit() else p for p in name.split("."))


def bits_by_type(planned: Planned) -> dict[str, dict[str, tuple[int, int]]]:
    """Count layers and bytes by type of layer and bit widths.

    Arguments
    ---------
    planned : Planned
        Any plan with its coverage.

    Returns
    -------
    dict
        By `layer_type` and bit widths (``W4A8``, ``W32`` for float): number
        of layers, bytes of their weights in a checkpoint.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for row in layer_rows(planned):
        counts = found.setdefault(layer_type(row["layer"]), {})
        count, size = counts.get(row["bits"], (0, 0))
        counts[row["bits"]] = count + 1, size + row["num_bytes"]
    return {kind: sort_bits(counts) for kind, counts in found.items()}


def chosen_bits(plan: QuantizationPlan, search: dict) -> dict[str, str]:
    """Return the bit widths that a plan gives each layer of the search.

    Arguments
    ---------
    plan : QuantizationPlan
        The plan that was chosen.
    search : dict
        The report of the search.

    Returns
    -------
    dict
        Bit widths by layer, as the candidates spell them.
    """
    found = {}
    for name, candidates in sensitivity_by_layer(search).items():
        layer = plan.layers.get(name)
        bits = FLOAT if layer is None else bits_of(layer)
        weights = parse_bits(bits)[0]
        # Layers without a quantized input, such as embeddings, have no second
        # bit width: to the search their W4A8 was the same as W4.
        same = [c for c in candidates if parse_bits(c)[0] == weights]
        exact = [c for c in same if parse_bits(c) == parse_bits(bits)]
        found[name] = (exact or same or [bits])[0]
    return found


def sensitivity_by_layer(search: dict) -> dict[str, dict[str, dict]]:
    """Return the rows of a search's sensitivity by layer and bit widths."""
    found: dict[str, dict[str, dict]] = {}
    for row in search["sensitivity"]:
        found.setdefault(row["layer"], {})[row["bits"]] = row
    return found


# -- text --------------------------------------------------------------------


def front_lines(planned: Planned) -> list[str]:
    """Say what a mixed-precision search chose, between what, and its cost.

    Arguments
    ---------
    planned : Planned
        The plan with the report of its search.

    Returns
    -------
    list of str
        Lines for the terminal and the log.
    """
    search = planned.search
    return [
        *_chosen_lines(search),
        *bits_lines(bits_by_type(planned)),
        *_sensitive_lines(search, chosen_bits(planned.plan, search)),
        *_table_lines(search),
        cost_line(search["cost"]),
    ]


def _chosen_lines(search: dict) -> list[str]:
    chosen = search["chosen"]
    budget = ", ".join(f"{k} {v:g}" for k, v in search["budget"].items())
    lines = [
        f"mixed precision: {chosen['ratio']:.1%} of the bytes ({budget}, "
        f"candidates {' '.join(search['candidates'])})"
    ]
    joint = search["joint"]
    if joint is not None:
        digits = decimals(joint["float"], joint["quantized"])
        lines.append(
            f"  on the search set: {joint['metric']} "
            f"{number(joint['float'], digits)}, "
            f"quantized {number(joint['quantized'], digits)}, "
            f"{interval(joint, digits)} {search['unit'] or ''}".rstrip()
        )
    return lines


def bits_lines(counts: Mapping[str, Mapping[str, tuple]]) -> list[str]:
    """Return a table of layers and megabytes by type and bit widths.

    Example
    -------
    >>> for line in bits_lines({"Linear": {"W8A8": (3, 250_000)}}):
    ...     print(line)
    layers and MB       W8A8
      Linear       3 (0.250)
    """
    widths = {bits for row in counts.values() for bits in row}
    ordered = sorted(widths, key=parse_bits)
    rows = [("layers and MB", *ordered, "")]
    for kind, row in counts.items():
        cells = [
            f"{row[b][0]} ({row[b][1] / 1e6:.3f})" if b in row else "-"
            for b in ordered
        ]
        rows.append((f"  {kind}", *cells, ""))
    return align(rows)


def _sensitive_lines(search: dict, chosen: Mapping[str, str]) -> list[str]:
    """Name the layers that move the output most when quantized alone."""
    by_layer = sensitivity_by_layer(search)

    def sensitivity(name: str) -> tuple:
        rows = by_layer[name].values()
        return tuple(
            max(row[key] if is_number(row[key]) else 0.0 for row in rows)
            for key in ("distance", "change")
        )

    most = sorted(by_layer, key=sensitivity, reverse=True)[:_MOST_SENSITIVE]
    if not most:
        return []
    widths = {bits for name in most for bits in by_layer[name]}
    ordered = sorted(widths, key=parse_bits)
    rows = [("most sensitive layers, distance", *ordered, "plan")]
    for name in most:
        found = by_layer[name]
        cells = [
            _distance(found[b]["distance"]) if b in found else "-"
            for b in ordered
        ]
        rows.append((f"  {name}", *cells, chosen[name]))
    return align(rows)


def _table_lines(search: dict) -> list[str]:
    """Return the measured plans on the Pareto front, and the chosen one."""
    shown = [p for p in search["front"] if p["efficient"] or p["chosen"]]
    digits = decimals(search["float"])
    head = ["Pareto front, search set", "bytes"]
    if search["metric"] is not None:
        head += [search["metric"], "change [95 % interval]"]
    rows = [(*head, "distance", "layers")]
    for plan in shown:
        cells = [f"  {_mark(plan)}", f"{plan['ratio']:.1%}"]
        if search["metric"] is not None:
            cells += [number(plan["value"], digits), interval(plan, digits)]
        layers = ", ".join(
            f"{count} {bits}" for bits, count in sort_bits(plan["bits"]).items()
        )
        rows.append((*cells, _distance(plan["distance"]), layers))
    lines = align(rows)
    rest = len(search["front"]) - len(shown)
    if rest:
        lines.append(f"  {rest} more are Pareto-dominated, see front.csv")
    return lines


def _mark(plan: dict) -> str:
    if not plan["chosen"]:
        return "efficient"
    return "chosen" if plan["efficient"] else "chosen, dominated"


def sort_bits(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Order a mapping by bit widths, from narrow to wide.

    Example
    -------
    >>> sort_bits({"W16": 1, "W4A8": 2, "W32": 3})
    {'W4A8': 2, 'W16': 1, 'W32': 3}
    """
    return dict(sorted(counts.items(), key=lambda item: parse_bits(item[0])))


def _distance(value: Optional[float]) -> str:
    return f"{value:.1e}" if is_number(value) else "-"


# -- files -------------------------------------------------------------------


def save_front(folder: Path, planned: Planned) -> None:
    """Write the front and the sensitivity of layers as CSV.

    Arguments
    ---------
    folder : Path
        Where ``front.csv`` and ``sensitivity.csv`` go; it exists.
    planned : Planned
        The plan with the report of its search.
    """
    search = planned.search
    chosen = chosen_bits(planned.plan, search)
    # Bit widths have a column each, with the number of layers.
    widths = sort_bits(
        dict.fromkeys(b for p in search["front"] for b in p["bits"])
    )
    none = dict.fromkeys(widths, 0)
    plans = [{**plan, **none, **plan["bits"]} for plan in search["front"]]
    _write_csv(folder / "front.csv", (*_FRONT_FIELDS, *widths), plans)
    rows = [
        {**row, "chosen": row["bits"] == chosen[row["layer"]]}
        for row in search["sensitivity"]
    ]
    _write_csv(folder / "sensitivity.csv", _SENSITIVITY_FIELDS, rows)


def _write_csv(path: Path, fields: tuple, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, fields, extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        # None is an empty cell
        writer.writerows(map(finite, rows))
