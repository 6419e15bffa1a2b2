"""Tables of the benchmark of mixed precision."""

import textwrap
from collections import Counter

from speechbrain_stablequant.core.format import decimals, interval, number
from speechbrain_stablequant.report.mixed_precision import sort_bits

__all__ = [
    "bits_table",
    "markdown",
    "metric_names",
    "runtimes",
    "test_names",
    "test_of",
]


def markdown(rows: list[dict]) -> str:
    """Return a table for each test set, and what failed."""
    done = [row for row in rows if "failed" not in row]
    lines = []
    for name in test_names(done):
        found = [(row, test_of(row, name)) for row in done]
        found = [(row, test) for row, test in found if test is not None]
        metrics = metric_names(test for _, test in found)
        head = ["row", "MB", "bytes", *(f"{m} (change)" for m in metrics)]
        head += ["layers", "search passes", "speed", "int8 layers"]
        lines += [f"**{name}**", "", _line(head)]
        lines += ["|---|---:|---:" + "|---" * (len(head) - 3) + "|"]
        lines += [_line(_float_cells(*found[0], metrics))]
        lines += [_line(_cells(row, test, metrics)) for row, test in found]
        lines += [""]
    lines += [*bits_table(rows), ""]
    for row in rows:
        if "failed" in row:
            why = textwrap.shorten(row["failed"], 200, placeholder=" ...")
            lines.append(f"{row['row']}: {why}")
    return "\n".join(lines)


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def test_names(rows: list[dict]) -> list[str]:
    names = [test["name"] for row in rows for test in row["tests"]]
    return list(dict.fromkeys(names))


def test_of(row: dict, name: str):
    return next((t for t in row["tests"] if t["name"] == name), None)


def metric_names(tests) -> list[str]:
    """Return all metrics; the loss only where there is nothing else."""
    names = list(dict.fromkeys(m for test in tests for m in test["metrics"]))
    return [name for name in names if name != "loss"] or names


def _float_cells(row: dict, test: dict, metrics) -> list[str]:
    values = [test["metrics"][name] for name in metrics]
    return [
        "*float*",
        f"{row['float_num_bytes'] / 1e6:.3f}",
        "100 %",
        *map(_float_cell, values),
        "",
        "",
        _speed(test["float_speed"]),
        "",
    ]


def _float_cell(row: dict) -> str:
    """Return the float model's metric and, in brackets, its own interval."""
    digits = decimals(row["float"])
    ends = row.get("float_interval") or [None]
    if None in ends:
        return number(row["float"], digits)
    low, high = (number(end, digits) for end in ends)
    return f"{number(row['float'], digits)} [{low}, {high}]"


def _cells(row: dict, test: dict, metrics) -> list[str]:
    runtime = test["runtime"]
    return [
        row["row"],
        f"{row['num_bytes'] / 1e6:.3f}",
        f"{row['num_bytes'] / row['float_num_bytes']:.1%}",
        *(_metric_cell(test["metrics"].get(name)) for name in metrics),
        _bits(row["bits"]),
        _cost(row["search"].get("cost")),
        _speed(test["quantized_speed"], test["float_speed"]),
        "" if runtime is None else _int8(runtime),
    ]


def _metric_cell(row) -> str:
    if row is None:
        return ""
    digits = decimals(row["float"], row["quantized"])
    change = interval(row, digits)
    text = number(row["quantized"], digits)
    return f"{text} ({change})" if change else text


def _bits(counts: dict) -> str:
    """Return the number of layers of each width: ``12 W4A8, 30 W8A8``."""
    totals: Counter = Counter()
    for row in counts.values():
        totals.update({bits: count for bits, (count, _) in row.items()})
    return ", ".join(f"{n} {bits}" for bits, n in sort_bits(totals).items())


def bits_table(rows: list[dict]) -> list[str]:
    """Return the widths of each type of layer, a column for each row."""
    done = [row for row in rows if "failed" not in row]
    types = list(dict.fromkeys(t for row in done for t in row["bits"]))
    lines = [_line(["layers", *(row["row"] for row in done)])]
    lines += ["|---" * (len(done) + 1) + "|"]
    for kind in types:
        cells = (_bits({kind: row["bits"].get(kind, {})}) for row in done)
        lines.append(_line([f"`{kind}`", *cells]))
    return lines


def _cost(cost) -> str:
    """Return the passes of a search; computed, for many are reused."""
    if not cost:
        return ""
    text = (
        f"{cost['forward_passes']:.0f} ({cost['computed_passes']:.1f} computed"
    )
    if cost["resumed"]:
        text += f", {cost['resumed']} evaluations known"
    return text + ")"


def _speed(measure, before=None) -> str:
    """Return the real-time factor, or seconds, and how many times as fast."""
    if measure is None:
        return ""
    key = "real_time_factor"
    if measure.get(key) is None:
        key = "seconds"
    text = f"{measure[key]:.4f}" + (" s" if key == "seconds" else "")
    if before is not None and before.get(key):
        text += f" ({before[key] / measure[key]:.2f} times)"
    return text


def _int8(runtime: dict) -> str:
    return f"{runtime['num_int8']} of {runtime['num_planned']}"


def runtimes(rows: list[dict]) -> str:
    """Say what the quantized passes ran on."""
    found = [t["runtime"] for row in rows for t in row.get("tests", ())]
    texts = (
        "reference execution"
        if runtime is None
        else f"{runtime['runtime']}, {runtime['settings']['threads']} threads, "
        f"rest {runtime['settings']['precision']}"
        for runtime in found
    )
    return "; ".join(sorted(set(texts)))
