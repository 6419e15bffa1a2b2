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

__all__ = ["read_run_file"]

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
_SCHEMAS: dict[str, Schema] = {
    "report": {
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
    },
    "coverage": {**_optional("fraction"), "parameters": _PARAMETERS},
    "histograms": [
        {
            "layer": str,
            "input": str,
            "low": Real,
            "bin_width": Real,
            "counts": [_is_count],
        }
    ],
    "items": {str: {str: {"quantized?": ([_is_item], None)}}},
}


def read_run_file(path: Union[str, Path], what: str) -> Any:
    """Read and check one of the JSON files of a run.

    Arguments
    ---------
    path : str or Path
        The file, under any name.
    what : str
        ``report``; ``coverage`` (``fraction`` and ``parameters``);
        ``histograms`` (what calibration saw of each input); or ``items`` (what
        each utterance adds, by test set and metric).

    Returns
    -------
    dict or list of dict
        Plain data.

    Raises
    ------
    ExperimentError
        If it cannot be read or does not have these contents.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ExperimentError(
            f"Cannot read the {what} {path}: {err}. Run the recipe again, or "
            "fetch the file again."
        ) from err
    try:
        _check(data, _SCHEMAS[what], what)
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
