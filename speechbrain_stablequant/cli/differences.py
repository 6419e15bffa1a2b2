"""What differs between quantized models: layers, sizes, metrics, speed."""

import json
from collections.abc import Sequence
from typing import Optional

from speechbrain_stablequant.cli.describe import layer_row
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.scoring import Item, Metric
from speechbrain_stablequant.sources import Source

__all__ = ["hardware", "items_of", "layer_rows", "metric_rows", "speed_rows"]

_LAYER_FIELDS = ("weights", "rounding")
_INPUT_FIELDS = ("scheme", "percentile", "range")


# -- layers ------------------------------------------------------------------


def layer_rows(sources: Sequence[Source]) -> list[dict]:
    """Return each layer that is not the same in all sources.

    Arguments
    ---------
    sources : list of Source
        With layers; those without are left out of the question.

    Returns
    -------
    list of dict
        ``name`` and, by what differs, a value for each source (None: the
        layer is in float there, or nothing is known of it).
    """
    plans = [source.layers for source in sources]
    names = dict.fromkeys(n for plan in plans if plan for n in plan)
    rows = []
    for name in names:
        facts = [_facts(name, plan) for plan in plans]
        known = [f for f, plan in zip(facts, plans) if plan is not None]
        keys = dict.fromkeys(k for fact in known for k in fact)
        differing = {
            key: [fact.get(key) for fact in facts]
            for key in keys
            if any(f.get(key) != known[0].get(key) for f in known)
        }
        if differing:
            rows.append({"name": name, "differs": differing})
    return rows


def _facts(name: str, plan) -> dict:
    """Return what can differ of a layer, by what it is."""
    if plan is None or name not in plan:
        return {}
    row = layer_row(name, plan[name])
    facts = {key: row[key] for key in _LAYER_FIELDS}
    for slot, given in row["inputs"].items():
        for key in _INPUT_FIELDS:
            facts[f"{slot} {key}"] = given[key]
    return facts


# -- metrics -----------------------------------------------------------------


def items_of(source: Source) -> dict:
    """Return what each utterance adds to each metric, where it was kept.

    Raises
    ------
    StableQuantError
        If the file with them is damaged.
    """
    if source.report is None:
        return {}
    folder = source.path.parent
    if source.experiment is not None:
        folder = source.experiment.ptq
    path = folder / "items.json"
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise StableQuantError(f"Cannot read {path}: {err}.") from err
    if not isinstance(data, dict):
        raise StableQuantError(f"{path} has no test sets: it is damaged.")
    return data


def metric_rows(
    sources: Sequence[Source],
) -> tuple[list[dict], list[str]]:
    """Pair test sets by name, and metrics in them.

    Returns
    -------
    rows : list of dict
        ``test``, ``metric``, ``values`` (a row of the report, or None, for
        each source) and ``differences`` (to the first source, or None).
    notes : list of str
        Why something could not be compared.
    """
    tests = [_tests(source) for source in sources]
    items = [items_of(source) for source in sources]
    notes: list[str] = []
    rows = []
    for test in dict.fromkeys(name for known in tests for name in known):
        metrics = [known.get(test, {}).get("metrics", {}) for known in tests]
        for name in dict.fromkeys(m for known in metrics for m in known):
            values = [known.get(name) for known in metrics]
            found = [each.get(test, {}).get(name) for each in items]
            differences = [None]
            for i in range(1, len(sources)):
                pair = (values[0], values[i]), (found[0], found[i])
                change, note = _difference(name, *pair)
                differences.append(change)
                if note:
                    notes.append(f"{test} {name}, {_letter(i)}: {note}")
            rows.append(
                {
                    "test": test,
                    "metric": name,
                    "values": values,
                    "differences": differences,
                }
            )
    return rows, notes


def _tests(source: Source) -> dict[str, dict]:
    if source.report is None:
        return {}
    return {test["name"]: test for test in source.report["tests"]}


def _difference(name: str, values, items) -> tuple[Optional[dict], str]:
    """Return the difference of two systems, with its interval if possible."""
    if any(v is None or v.get("quantized") is None for v in values):
        return None, ""
    plain = {
        "change": values[1]["quantized"] - values[0]["quantized"],
        "low": None,
        "high": None,
    }
    counts = [value.get("items") for value in values]
    if None not in counts and counts[0] != counts[1]:
        return plain, f"other test items ({counts[0]} and {counts[1]})"
    if any(each is None for each in items):
        return plain, ""
    if any(each.get("pairs") or not each.get("quantized") for each in items):
        return plain, ""  # a metric over pairs keeps no items
    first, second = ([Item(*row) for row in i["quantized"]] for i in items)
    about = {
        key: items[0][key] for key in ("factor", "unit") if key in items[0]
    }
    try:
        return Metric(name, **about).compare(first, second).to_dict(), ""
    except StableQuantError:
        return plain, "other test items, of the same number"


def _letter(index: int) -> str:
    return chr(ord("A") + index)


# -- speed -------------------------------------------------------------------


def hardware(source: Source) -> Optional[dict]:
    """Return what speed depends on, where the report says it."""
    environment = (source.report or {}).get("environment") or {}
    known = {k: environment.get(k) for k in ("processor", "threads")}
    return None if None in known.values() else known


def speed_rows(
    sources: Sequence[Source],
) -> tuple[list[dict], list[str]]:
    """Return real-time factors by test set, unless hardware differs.

    Returns
    -------
    rows : list of dict
        ``test``, ``real_time_factors`` (None where not measured).
    notes : list of str
        Why speeds are not compared.
    """
    tests = [_tests(source) for source in sources]
    rows = []
    for test in dict.fromkeys(name for known in tests for name in known):
        speeds = [
            (known.get(test, {}).get("quantized_speed") or {}).get(
                "real_time_factor"
            )
            for known in tests
        ]
        if sum(speed is not None for speed in speeds) > 1:
            rows.append({"test": test, "real_time_factors": speeds})
    machines = [hardware(source) for source in sources if source.report]
    if rows and any(machine != machines[0] for machine in machines):
        shown = "; ".join(
            "unknown"
            if m is None
            else f"{m['processor']}, {m['threads']} threads"
            for m in machines
        )
        return [], [f"speeds are not compared, hardware differs: {shown}"]
    return rows, []
