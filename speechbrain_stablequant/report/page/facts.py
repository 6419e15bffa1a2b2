"""The statements and tables of the page, from the data of a report."""

from collections.abc import Sequence

from speechbrain_stablequant.core.format import (
    decimals,
    is_number,
    number,
    times_as_fast,
)
from speechbrain_stablequant.report.rows import speed_of

__all__ = [
    "REST",
    "clipped_histograms",
    "coverage_rows",
    "main_results",
    "most_clipped",
    "needs_checkpoint",
    "result_rows",
    "size_parts",
    "speed_table",
    "verdict",
]

REST = "buffers and header"
_ORDER = ("unsupported", "kept", "quantized")


def result_rows(report: dict) -> list[dict]:
    """Return one row for each metric of each test set, numbers as text."""
    return [
        _result_row(test["name"], name, test["metrics"][name])
        for test in report["tests"]
        for name in _metric_names(report, test)
    ]


def _result_row(test: str, metric: str, row: dict) -> dict:
    digits = decimals(row["float"], row["quantized"])
    change = row.get("change")
    return {
        "test": test,
        "metric": metric,
        "float": _value(row, "float", digits),
        "float_interval": _range(row.get("float_interval"), digits),
        "quantized": _value(row, "quantized", digits),
        "change": "" if change is None else number(change, digits, True),
        "interval": _range(
            (row.get("low"), row.get("high")), digits, signed=True
        ),
        "unit": row.get("unit") or "",
        "items": row.get("items"),
        "judgement": judgement(row),
        "note": _note(row),
        "lower_is_better": row.get("lower_is_better", True),
    }


def _was_scored(row: dict, side: str) -> bool:
    """Whether a pass scored a metric, if perhaps as nan."""
    if row[side] is not None:
        return True
    if side == "float":
        return "change" in row
    # Rows exist for what the quantized pass scored; only the loss may be None.
    return "items" in row or row["float"] is not None


def _value(row: dict, side: str, digits: int) -> str:
    value = row[side]
    if value is None and _was_scored(row, side):
        return "not a number"
    # Only error rates have changes in points.
    is_percent = row.get("unit") == "points" and is_number(value)
    return number(value, digits) + (" %" if is_percent else "")


def _note(row: dict) -> str:
    """Return what is shown where the change is not known."""
    if not _was_scored(row, "float"):
        return "float was not scored"
    if row["float"] is None:
        return "float is not a number"
    return "worse" if row["quantized"] is None else ""


def judgement(row: dict) -> str:
    """Return whether a change is more than chance: better, worse, same.

    Empty where the change is not known, or which direction is better.

    Example
    -------
    >>> judgement({"change": 0.2, "low": 0.1, "high": 0.3})
    'worse'
    >>> judgement({"change": 0.2, "low": -0.1, "high": 0.3})
    'same'
    """
    if row.get("quantized", 0) is None and row["float"] is not None:
        return "worse"
    low, high = row.get("low"), row.get("high")
    lower_is_better = row.get("lower_is_better", True)
    if low is None or high is None or lower_is_better is None:
        return ""
    if low <= 0 <= high:
        return "same"
    return "better" if (high < 0) == lower_is_better else "worse"


def _range(ends, digits: int, signed: bool = False) -> str:
    if not ends or None in ends:
        return ""
    low, high = (number(end, digits, signed) for end in ends)
    return f"{low} to {high}"


def main_results(report: dict) -> list[dict]:
    """Return the row of the main metric, for each test set.

    That is the one that the search used, or would use: WER first, then other
    error rates, then anything but the loss.
    """
    found = {}
    for row in result_rows(report):
        found.setdefault(row["test"], row)
    return list(found.values())


def _metric_names(report: dict, test: dict) -> list[str]:
    """Return the metrics of a test, the main one first."""
    searched = (report["search"].get("joint") or {}).get("metric")

    def order(name: str) -> tuple:
        row = test["metrics"][name]
        return (
            name == "loss",
            name != searched,
            "wer" not in name.lower(),
            row.get("unit") != "points",
            row.get("lower_is_better", True) is None,
        )

    return sorted(test["metrics"], key=order)


def verdict(report: dict) -> str:
    """Sum up in one line, in numbers, what quantization did."""
    parts = [_score_sentence(row) for row in main_results(report)[:2]]
    files = report["files"]
    if files:
        ratio = _total(files, "num_bytes") / _total(files, "float_num_bytes")
        parts.append(f"{ratio:.1%} of the bytes")
    label, rows = speed_table(report)
    paired = [(a, b) for _, a, b in rows if a and b]
    if paired:
        before, after = (sum(side) for side in zip(*paired))
        parts.append(times_as_fast(before, after))
    return "; ".join(parts) + "." if parts else "No test pass has finished."


def _total(rows: Sequence[dict], key: str) -> int:
    return sum(row[key] for row in rows)


def _score_sentence(row: dict) -> str:
    text = f"{row['metric']} {row['float']} → {row['quantized']}"
    text = text.replace("- → ", "")
    if row["change"]:
        text += f" ({row['change']} {row['unit']}".rstrip()
        if row["interval"]:
            text += f", 95 % interval {row['interval']}"
        text += ")"
    return f"{text} on {row['test']}"


def size_parts(report: dict) -> dict[str, dict[str, int]]:
    """Return bytes by part, in float and quantized.

    They add up to the files; or to the tensors only, where some modules are
    saved in no file.
    """
    before = {"weights in float": 0, "biases, norms, gains": 0}
    after = {"integers": 0, "scales": 0, **before}
    for row in report["coverage"]["parameters"]:
        part = "biases, norms, gains"
        if row["is_weight"] or row["status"] == "quantized":
            part = "weights in float"
        before[part] += row["num_bytes"]
        if row["status"] != "quantized":
            after[part] += row["quantized_num_bytes"]
            continue
        scales = row.get("scale_num_bytes", 0)
        after["scales"] += scales
        after["integers"] += row["quantized_num_bytes"] - scales
    sizes = {"float": before, "quantized": after}
    files = report["files"]
    total = _total(files, "float_num_bytes"), _total(files, "num_bytes")
    rest = [
        size - sum(parts.values()) for size, parts in zip(total, sizes.values())
    ]
    if min(rest) >= 0:
        before[REST], after[REST] = rest
    return sizes


def speed_table(report: dict) -> tuple[str, list[tuple]]:
    """Return what speed is measured in, and both values by test set.

    Tests with another measure than the first are left out.
    """
    rows, unit = [], ""
    for test in report["tests"]:
        speed = speed_of(test)
        if speed is not None and unit in ("", speed[0]):
            unit = speed[0]
            rows.append((test["name"], *speed[1:]))
    return unit, rows


def needs_checkpoint(report: dict) -> bool:
    """Whether the integers were trained or fitted: no plan reproduces them."""
    plan = report.get("plan") or {}
    return plan.get("method") == "quantization_aware" or any(
        row.get("rounding") not in (None, "", "nearest")
        for row in report.get("layers", ())
    )


def most_clipped(rows: Sequence[dict]) -> list[dict]:
    """Return the ranges of inputs, the most clipped first."""
    return sorted(rows, key=lambda r: (-r["clipped"], r["percentile"]))


def clipped_histograms(report: dict, histograms: Sequence[dict]) -> list[dict]:
    """Return histograms with the ranges of the plan, where both are known.

    Layers that share an input (query, key and value) share a row, with the
    number of further layers in ``same``.
    """
    plans = {(row["layer"], row["input"]): row for row in report["clipping"]}
    rows = []
    for row in histograms:
        plan = plans.get((row["layer"], row["input"]))
        if plan is None or not row["counts"]:
            continue
        found = {**row, **plan, "unit": plan["unit"] or row["layer"], "same": 0}
        if rows and _is_same(rows[-1], found):
            rows[-1]["same"] += 1
        else:
            rows.append(found)
    return rows


def _is_same(first: dict, second: dict) -> bool:
    names = ("low", "bin_width", "counts", "range", "percentile")
    return all(first[name] == second[name] for name in names)


def coverage_rows(report: dict) -> list[dict]:
    """Return all parameters: those not quantized first, then by size."""
    return sorted(
        report["coverage"]["parameters"],
        key=lambda row: (
            _ORDER.index(row["status"]),
            not row["is_weight"],
            -row["num_bytes"],
        ),
    )
