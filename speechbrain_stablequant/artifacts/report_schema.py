"""The JSON files of a run, checked on reading.

``report.json``, and beside it ``coverage.json``, ``histograms.json`` and
``items.json``.
"""

import json
from pathlib import Path
from typing import NoReturn, Union

from speechbrain_stablequant.errors import ExperimentError

__all__ = ["read_coverage", "read_histograms", "read_items", "read_report"]


def read_report(path: Union[str, Path]) -> dict:
    """Read a ``report.json`` and check that it is one.

    Raises
    ------
    ExperimentError
        If it cannot be read, is no JSON or is something else.
    """
    path = Path(path)
    data = _read_json(path, "the report")
    missing = [
        key for key, kind in _REPORT.items() if not _has(data, key, kind)
    ]
    if missing:
        raise ExperimentError(
            f"{path} is not a report of this package: it has no "
            f"{', '.join(map(repr, missing))}."
        )
    _check_report(data, path)
    return data


def read_coverage(path: Union[str, Path]) -> dict:
    """Read a ``coverage.json``: ``fraction`` and ``parameters``.

    Raises
    ------
    ExperimentError
        If it cannot be read, is no JSON or is something else.
    """
    path = Path(path)
    data = _read_json(path, "the coverage")
    if not _has(data, "parameters", list):
        raise ExperimentError(f"{path} has no 'parameters': it is damaged.")
    _check_coverage(data, path)
    return data


def read_histograms(path: Union[str, Path]) -> list[dict]:
    """Read a ``histograms.json``: what calibration saw of each input.

    Raises
    ------
    ExperimentError
        If it cannot be read, is no JSON or is something else.
    """
    path = Path(path)
    rows = _read_json(path, "the histograms")
    if not isinstance(rows, list) or not all(map(_is_histogram, rows)):
        _refuse(path, "it has no histograms of this package")
    return rows


def _is_histogram(row) -> bool:
    return (
        all(_has(row, key, str) for key in ("layer", "input"))
        and all(_has(row, key, _NUMBER) for key in ("low", "bin_width"))
        and _has(row, "counts", list)
        and all(isinstance(c, int) and c >= 0 for c in row["counts"])
    )


def read_items(path: Union[str, Path]) -> dict[str, dict]:
    """Read an ``items.json``: what each utterance adds to each metric.

    Returns
    -------
    dict
        By test set and metric.

    Raises
    ------
    ExperimentError
        If it cannot be read, is no JSON or is something else.
    """
    path = Path(path)
    data = _read_json(path, "the items")
    if not isinstance(data, dict):
        raise ExperimentError(f"{path} has no test sets: it is damaged.")
    for name, metrics in data.items():
        if not isinstance(metrics, dict) or not all(
            map(_has_items, metrics.values())
        ):
            _refuse(path, f"the items of '{name}' are")
    return data


def _has_items(metric) -> bool:
    """Whether a metric has items as a report writes them."""
    if not isinstance(metric, dict):
        return False
    rows = metric.get("quantized")
    return rows is None or (isinstance(rows, list) and all(map(_is_item, rows)))


def _is_item(row) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and all(isinstance(number, _NUMBER) for number in row[1:])
    )


def _read_json(path: Path, what: str):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ExperimentError(f"Cannot read {what} {path}: {err}.") from err


_NUMBER = (int, float)
_NONE = type(None)
_REPORT = {"label": str, "tests": list, "files": list, "coverage": dict}
_OPTIONAL = {  # of a report
    "plan": (dict, _NONE),
    "environment": (dict, _NONE),
    "unreached_layers": (list, _NONE),
}
_TEST = {"name": str, "metrics": dict}
_SPEEDS = ("float_speed", "quantized_speed")
_SPEED = dict.fromkeys(
    ("real_time_factor", "seconds", "peak_num_bytes"), (*_NUMBER, _NONE)
)
_METRIC = dict.fromkeys(
    ("float", "quantized", "change", "low", "high", "items"),
    (*_NUMBER, _NONE),
)
_FILE = {"name": str, "num_bytes": int}
_PARAMETER = {
    "name": str,
    "status": str,
    "detail": str,
    "num_bytes": int,
    "quantized_num_bytes": int,
    "is_weight": bool,
}


def _check_report(data: dict, path: Path) -> None:
    """Refuse a report whose rows lack a field or have one of another type."""
    _check_rows("tests", data["tests"], _TEST, path)
    _check_rows("files", data["files"], _FILE, path)
    _check_optional("the report", data, _OPTIONAL, path)
    for file in data["files"]:
        before = file.get("float_num_bytes")
        if before is not None and not (isinstance(before, int) and before > 0):
            _refuse(path, f"'float_num_bytes' of '{file['name']}' is {before}")
    for test in data["tests"]:
        where = f"the metrics of '{test['name']}'"
        for row in test["metrics"].values():
            _check_optional(where, row, _METRIC, path)
        for speed in _SPEEDS:
            where = f"{speed} of '{test['name']}'"
            _check_optional(where, test.get(speed) or {}, _SPEED, path)
    _check_coverage(data["coverage"], path)


def _check_coverage(data: dict, path: Path) -> None:
    _check_optional("coverage", data, {"fraction": (*_NUMBER, _NONE)}, path)
    rows = data.get("parameters") or []
    _check_rows("coverage", rows, _PARAMETER, path)


def _check_rows(where: str, rows, fields: dict, path: Path) -> None:
    """Refuse anything but a list of objects with these fields."""
    if not isinstance(rows, list):
        _refuse(path, f"'{where}' has {rows!r} and no rows")
    for row in rows:
        for key, kind in fields.items():
            if not _has(row, key, kind):
                _refuse(path, f"a row of '{where}' has no right '{key}'")


def _check_optional(where: str, row, fields: dict, path: Path) -> None:
    """Refuse fields of another type; they may be missing."""
    if not isinstance(row, dict):
        _refuse(path, f"{where} are {row!r}")
    for key, kinds in fields.items():
        value = row.get(key)
        if key in row and not isinstance(value, kinds):
            _refuse(path, f"'{key}' in {where} is {value!r}")


def _refuse(path: Path, what: str) -> NoReturn:
    raise ExperimentError(
        f"{path} is damaged: {what}. Run the recipe again, or fetch it again."
    )


def _has(data, key: str, kind: type) -> bool:
    return isinstance(data, dict) and isinstance(data.get(key), kind)
