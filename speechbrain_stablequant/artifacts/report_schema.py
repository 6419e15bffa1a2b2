"""The JSON files of a run, checked on reading.

``report.json``, and beside it ``coverage.json``, ``histograms.json`` and
``items.json``. They may come from a hub, so that none of their fields can be
trusted to be there or to have its type.
"""

import json
from numbers import Real
from pathlib import Path
from typing import Any, Callable, Union

from speechbrain_stablequant.errors import ExperimentError

__all__ = ["read_coverage", "read_histograms", "read_items", "read_report"]

# A schema is a type; a test of the value; a list with the schema of its items;
# an object with the schemas of its fields (``name?`` may be missing; `str`
# stands for any name); or a pair with None, where null is allowed too.
Schema = Union[type, Callable[[Any], bool], list, dict, tuple]


def _is_positive(value) -> bool:
    return isinstance(value, int) and value > 0


def _is_count(value) -> bool:
    return isinstance(value, int) and value >= 0


def _is_item(row) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and all(isinstance(number, Real) for number in row[1:])
    )


def _optional(*names: str) -> dict[str, Schema]:
    """Return the schema of numbers that may be missing or null."""
    return {f"{name}?": (Real, None) for name in names}


_SPEED = _optional("real_time_factor", "seconds", "peak_num_bytes")
_METRIC = _optional("float", "quantized", "change", "low", "high", "items")
_TEST = {
    "name": str,
    "metrics": {str: _METRIC},
    "float_speed?": (_SPEED, None),
    "quantized_speed?": (_SPEED, None),
}
_FILE = {
    "name": str,
    "num_bytes": int,
    "float_num_bytes?": (_is_positive, None),
}
_PARAMETERS = [
    {
        "name": str,
        "status": str,
        "detail": str,
        "num_bytes": int,
        "quantized_num_bytes": int,
        "is_weight": bool,
    }
]
_REPORT = {
    "label": str,
    "tests": [_TEST],
    "files": [_FILE],
    "coverage": {
        **_optional("fraction"),
        "parameters?": (_PARAMETERS, None),
    },
    "plan?": (dict, None),
    "environment?": (dict, None),
    "unreached_layers?": (list, None),
}
_COVERAGE = {**_optional("fraction"), "parameters": _PARAMETERS}
_HISTOGRAMS = [
    {
        "layer": str,
        "input": str,
        "low": Real,
        "bin_width": Real,
        "counts": [_is_count],
    }
]
_ITEMS = {str: {str: {"quantized?": ([_is_item], None)}}}


def read_report(path: Union[str, Path]) -> dict:
    """Read a ``report.json``.

    Raises
    ------
    ExperimentError
        If it cannot be read or is not a report.
    """
    return _read(path, "report", _REPORT)


def read_coverage(path: Union[str, Path]) -> dict:
    """Read a ``coverage.json``: ``fraction`` and ``parameters``.

    Raises
    ------
    ExperimentError
        If it cannot be read or is not a coverage.
    """
    return _read(path, "coverage", _COVERAGE)


def read_histograms(path: Union[str, Path]) -> list[dict]:
    """Read a ``histograms.json``: what calibration saw of each input.

    Raises
    ------
    ExperimentError
        If it cannot be read or has no histograms.
    """
    return _read(path, "histograms", _HISTOGRAMS)


def read_items(path: Union[str, Path]) -> dict[str, dict]:
    """Read an ``items.json``: what each utterance adds to each metric.

    Returns
    -------
    dict
        By test set and metric.

    Raises
    ------
    ExperimentError
        If it cannot be read or has no items.
    """
    return _read(path, "items", _ITEMS)


def _read(path: Union[str, Path], what: str, schema: Schema):
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ExperimentError(f"Cannot read the {what} {path}: {err}.") from err
    try:
        _check(data, schema, what)
    except _Mismatch as err:
        raise ExperimentError(
            f"{path} is damaged, or not the {what} of a run with this package: "
            f"{err}. Run the recipe again, or fetch the file again."
        ) from err
    return data


class _Mismatch(Exception):
    """A value does not fit its schema."""


def _check(value, schema: Schema, where: str) -> None:
    """Raise `_Mismatch` unless a value fits."""
    if isinstance(schema, tuple):
        if value is not None:
            _check(value, schema[0], where)
        return
    if isinstance(schema, (list, dict)):
        fits = isinstance(value, type(schema))
    elif isinstance(schema, type):
        fits = isinstance(value, schema)
    else:
        fits = schema(value)
    if not fits:
        raise _Mismatch(f"{where} is {value!r:.80}")
    if isinstance(schema, list):
        for index, item in enumerate(value):
            _check(item, schema[0], f"{where}[{index}]")
    elif isinstance(schema, dict):
        _check_fields(value, schema, where)


def _check_fields(value: dict, schema: dict, where: str) -> None:
    for key, kind in schema.items():
        if key is str:
            for name, item in value.items():
                _check(item, kind, f"{where}.{name}")
            continue
        name = key.rstrip("?")
        if name in value:
            _check(value[name], kind, f"{where}.{name}")
        elif name == key:
            raise _Mismatch(f"{where} has no '{name}'")
