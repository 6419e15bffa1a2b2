"""What a page says, drawn from the plain data of a report."""

from collections.abc import Sequence
from typing import Optional

from speechbrain_stablequant.report.rows import speed_of
from speechbrain_stablequant.report.tables import decimals, number

__all__ = [
    "clipped_histograms",
    "clipping_rows",
    "coverage_rows",
    "main_results",
    "result_rows",
    "size_parts",
    "speed_table",
    "verdict",
]

_ORDER = ("unsupported", "kept", "quantized")


def result_rows(report: dict) -> list[dict]:
    """Return one row for each metric of each test set, numbers as text."""
    rows = []
    for test in report["tests"]:
        for name in _metric_names(report, test):
            row = test["metrics"][name]
            digits = decimals(row["float"], row["quantized"])
            rows.append(
                {
                    "test": test["name"],
                    "metric": name,
                    "float": number(row["float"], digits),
                    "float_interval": _range(row.get("float_interval"), digits),
                    "quantized": number(row["quantized"], digits),
                    "change": _signed(row.get("change"), digits),
                    "interval": _range(_ends(row), digits, signed=True),
                    "unit": row.get("unit") or "",
                    "items": row.get("items"),
                    "judgement": judgement(row),
                }
            )
    return rows


def judgement(row: dict) -> str:
    """Return whether a change is more than chance: better, worse, same.

    Example
    -------
    >>> judgement({"change": 0.2, "low": 0.1, "high": 0.3})
    'worse'
    >>> judgement({"change": 0.2, "low": -0.1, "high": 0.3})
    'same'
    """
    low, high = _ends(row)
    if low is None or high is None:
        return ""
    if low > 0:
        return "worse"
    return "better" if high < 0 else "same"


def _ends(row: dict) -> tuple[Optional[float], Optional[float]]:
    return row.get("low"), row.get("high")


def _signed(value: Optional[float], digits: int) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def _range(ends, digits: int, signed: bool = False) -> str:
    if not ends or None in ends:
        return ""
    low, high = ends
    sign = "+" if signed else ""
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def main_results(report: dict) -> list[dict]:
    """Return the row of the metric that matters, for each test set.

    That is the one the search went by; else the first that is no loss.
    """
    found = {}
    for row in result_rows(report):
        found.setdefault(row["test"], row)
    return list(found.values())


def _metric_names(report: dict, test: dict) -> list[str]:
    """Return the metrics of a test, those that matter most first."""
    searched = (report["search"].get("joint") or {}).get("metric")
    return sorted(test["metrics"], key=lambda n: (n == "loss", n != searched))


def verdict(report: dict) -> str:
    """Say in one line, in numbers, what quantization did."""
    parts = [_score_sentence(row) for row in main_results(report)[:2]]
    files = report["files"]
    if files:
        ratio = _total(files, "num_bytes") / _total(files, "float_num_bytes")
        parts.append(f"{ratio:.1%} of the bytes")
    label, rows = speed_table(report)
    paired = [(a, b) for _, a, b in rows if a and b]
    if paired:
        faster = sum(a for a, _ in paired) / sum(b for _, b in paired)
        parts.append(f"{faster:.2f} times as fast")
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
    """Return bytes of tensors by part, in float and quantized."""
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
    return {"float": before, "quantized": after}


def speed_table(report: dict) -> tuple[str, list[tuple]]:
    """Return what speed is measured in, and both values by test set.

    Tests that are measured in something else than the first are left out.
    """
    rows, unit = [], ""
    for test in report["tests"]:
        speed = speed_of(test)
        if speed is not None and unit in ("", speed[0]):
            unit = speed[0]
            rows.append((test["name"], *speed[1:]))
    return unit, rows


def clipping_rows(report: dict) -> list[dict]:
    """Return the ranges of all inputs, those clipped most first."""
    rows = report["clipping"]
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
    """Return all parameters: what is not quantized first, large ones first."""
    return sorted(
        report["coverage"]["parameters"],
        key=lambda row: (
            _ORDER.index(row["status"]),
            not row["is_weight"],
            -row["num_bytes"],
        ),
    )
