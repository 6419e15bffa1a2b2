"""Differences between quantized models: layers, sizes, metrics and speed."""

import math
from collections.abc import Sequence
from typing import Optional

from speechbrain_stablequant.artifacts.report_schema import read_run_file
from speechbrain_stablequant.core.format import letter
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.metrics.perplexity import PerplexityMetric
from speechbrain_stablequant.report.layers import describe_layer
from speechbrain_stablequant.report.rows import speed_of
from speechbrain_stablequant.report.sources import Source

__all__ = ["compare"]

# Of other metrics, such as EER, the items in a report are not enough.
_METRICS = {"Metric": Metric, "PerplexityMetric": PerplexityMetric}
_LAYER_FIELDS = ("weights", "rounding")
_INPUT_FIELDS = ("scheme", "percentile", "range")


def compare(sources: Sequence[Source]) -> dict:
    """Put quantized models side by side.

    Arguments
    ---------
    sources : list of Source
        The first is what the others are compared with.

    Returns
    -------
    dict
        ``sources`` (what each is, and its size), ``metrics`` and ``speeds`` by
        test set, ``layers`` that differ, and ``notes`` that say why something
        could not be compared.
    """
    metrics, notes = metric_differences(sources)
    speeds, more = speed_differences(sources)
    return {
        "sources": [_summary(source) for source in sources],
        "metrics": metrics,
        "speeds": speeds,
        "layers": layer_differences(sources),
        "notes": [*notes, *more, *_unrelated(sources)],
    }


def _summary(source) -> dict:
    """Return what a source is, and its size."""
    before = [file.get("float_num_bytes") for file in source.files]
    return {
        "name": source.name,
        "kind": source.kind,
        "label": (source.report or {}).get("label"),
        "method": source.method or None,
        "quantized_layers": None
        if source.layers is None
        else len(source.layers),
        "num_bytes": sum(f["num_bytes"] for f in source.files) or None,
        "float_num_bytes": None if None in before else sum(before) or None,
        "environment": (source.report or {}).get("environment"),
    }


def _unrelated(sources) -> list[str]:
    """Note sources that share no layer name with the first one."""
    known = [s for s in sources if s.layers]
    if len(known) < 2:
        return []
    first = set(known[0].layers)
    return [
        f"{source.name} has no layer in common with {known[0].name}: another "
        "model, or checkpoints whose layers are named after files"
        for source in known[1:]
        if not first & set(source.layers)
    ]


# -- layers ------------------------------------------------------------------


def layer_differences(sources: Sequence[Source]) -> list[dict]:
    """Return the layers that are not quantized alike in all sources.

    Arguments
    ---------
    sources : list of Source
        Those whose layers are not known do not count.

    Returns
    -------
    list of dict
        ``name`` and ``differs``: by property, its value in each source (None:
        the layer is in float there, or not known).
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
    """Return the properties of a layer that can differ."""
    if plan is None or name not in plan:
        return {}
    row = describe_layer(name, plan[name])
    facts = {key: row[key] for key in _LAYER_FIELDS}
    for slot, given in row["inputs"].items():
        for key in _INPUT_FIELDS:
            facts[f"{slot} {key}"] = given[key]
    return facts


# -- metrics -----------------------------------------------------------------


def _items_of(source: Source) -> dict[str, dict]:
    """Return what each utterance adds to each metric, where it was kept."""
    if source.experiment is not None:
        folder = source.experiment.ptq
    elif source.kind == "report":
        folder = source.path.parent
    else:  # items have names of utterances, which are not published
        return {}
    path = folder / "items.json"
    return read_run_file(path, "items") if path.is_file() else {}


def metric_differences(
    sources: Sequence[Source],
) -> tuple[list[dict], list[str]]:
    """Pair test sets and their metrics by name.

    Returns
    -------
    rows : list of dict
        ``test``, ``metric``, ``values`` (a row of the report, or None, for
        each source) and ``differences`` (to the first source, or None).
    notes : list of str
        Why something could not be compared.
    """
    tests = [_tests(source) for source in sources]
    items = [_items_of(source) for source in sources]
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
                    notes.append(f"{test} {name}, {letter(i)}: {note}")
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
    """Return the difference of two models, with its interval if possible."""
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
    if not all(map(_kept, items)) or _kind(items[0]) != _kind(items[1]):
        return plain, ""
    first, second = ([Item(*row) for row in i["quantized"]] for i in items)
    about = {
        key: items[0][key] for key in ("factor", "unit") if key in items[0]
    }
    metric = _METRICS[_kind(items[0])](name, **about)
    try:
        found = metric.compare(first, second).to_dict()
    except StableQuantError:
        return plain, "other test items, of the same number"
    if not math.isclose(
        found["change"], plain["change"], rel_tol=1e-6, abs_tol=1e-9
    ):
        return plain, "items.json and report.json are not of the same run"
    return found, ""


def _kept(items: Optional[dict]) -> bool:
    """Whether there are items from which the metric can be computed."""
    return bool(
        items
        and not items.get("pairs")  # a metric over pairs keeps no items
        and items.get("quantized")
        and _kind(items) in _METRICS
    )


def _kind(items: dict) -> str:
    return str(items.get("kind", "Metric"))


# -- speed -------------------------------------------------------------------


def _hardware(source: Source) -> Optional[dict]:
    """Return the hardware that speed depends on, where the report has it."""
    environment = (source.report or {}).get("environment") or {}
    known = {k: environment.get(k) for k in ("processor", "threads")}
    return None if None in known.values() else known


def speed_differences(
    sources: Sequence[Source],
) -> tuple[list[dict], list[str]]:
    """Return speeds by test set, unless the hardware differs.

    Returns
    -------
    rows : list of dict
        ``test``, ``measure`` (real-time factor; of models without audio,
        seconds) and ``values`` (None where not measured).
    notes : list of str
        Why speeds are not compared.
    """
    measured: dict[tuple[str, str], list[Optional[float]]] = {}
    for i, source in enumerate(sources):
        for name, test in _tests(source).items():
            speed = speed_of(test)
            if speed is not None:
                empty = [None] * len(sources)
                measured.setdefault((name, speed[0]), empty)[i] = speed[2]
    rows = [
        {"test": test, "measure": measure, "values": values}
        for (test, measure), values in measured.items()
        if len(values) - values.count(None) > 1
    ]
    machines = [_hardware(source) for source in sources if source.report]
    if rows and any(machine != machines[0] for machine in machines):
        shown = "; ".join(map(_machine, machines))
        return [], [f"speeds are not compared, hardware differs: {shown}"]
    return rows, []


def _machine(about: Optional[dict]) -> str:
    if about is None:
        return "unknown"
    return f"{about['processor']}, {about['threads']} threads"
