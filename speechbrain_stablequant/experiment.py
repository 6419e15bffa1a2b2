"""What a recipe run with the block has left in its output folder."""

import json
from functools import cached_property
from pathlib import Path
from typing import NoReturn, Union

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import ExperimentError

__all__ = ["Experiment", "is_quantized", "read_coverage", "read_report"]

RUN = "Run the recipe with the ptq block, to its end"


class Experiment:
    """The output folder of a recipe run with the block; only read.

    Arguments
    ---------
    folder : str or Path
        Output folder of the recipe, its ``ptq`` folder, or whatever the
        block's ``output_folder`` was.

    Attributes
    ----------
    folder : Path
        Output folder of the recipe.
    ptq : Path
        Folder with the results of the block.

    Raises
    ------
    ExperimentError
        If there is no such folder, or the block has left nothing in it.
    """

    def __init__(self, folder: Union[str, Path]):
        folder = Path(folder)
        if not folder.is_dir():
            raise ExperimentError(
                f"{folder} is {'a file' if folder.exists() else 'not there'}: "
                "an experiment is the output folder of a recipe."
            )
        self.ptq = next((f for f in (folder, folder / "ptq") if _ours(f)), None)
        if self.ptq is None:
            raise ExperimentError(
                f"{folder} has no results of quantization: no report.json, "
                f"plan.json or checkpoint/, neither there nor in ptq/. {RUN}."
            )
        self.folder = _recipe_folder(folder, self.ptq)

    @property
    def hyperparams(self) -> Path:
        """Path of the recipe's ``hyperparams.yaml``."""
        return self._need(
            self.folder / "hyperparams.yaml",
            "The recipe writes it when it begins (create_experiment_directory)"
            "; give the output folder of the recipe.",
        )

    @cached_property
    def report(self) -> dict:
        """The report of the test passes, plain data."""
        return read_report(self._need(self.ptq / "report.json", f"{RUN}."))

    @cached_property
    def plan(self) -> QuantizationPlan:
        """What is quantized, and how."""
        return QuantizationPlan.load(
            self._need(self.ptq / "plan.json", f"{RUN}.")
        )

    @cached_property
    def checkpoints(self) -> dict[str, Path]:
        """Paths of the quantized files by the name of their loadable."""
        from speechbrain_stablequant.checkpoint import read_header

        found = {p.stem: p for p in self._files() if is_quantized(p)}
        for path in found.values():
            read_header(path)
        if not found:
            raise ExperimentError(
                f"{self.ptq / 'checkpoint'} has no quantized checkpoint "
                f"(*.ckpt). {RUN}."
            )
        return found

    @property
    def other_files(self) -> dict[str, Path]:
        """Paths of tokenizers, encoders, normalizers there, by file name."""
        quantized = set(self.checkpoints.values())
        return {
            path.name: path for path in self._files() if path not in quantized
        }

    def _files(self) -> list[Path]:
        folder = self.ptq / "checkpoint"
        if not folder.is_dir():
            raise ExperimentError(f"{folder} is not there. {RUN}.")
        return sorted(path for path in folder.iterdir() if path.is_file())

    def _need(self, path: Path, advice: str) -> Path:
        if not path.is_file():
            raise ExperimentError(f"{path} is not there. {advice}")
        return path


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
    """Refuse a report with rows that are no rows of ours."""
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
    """Refuse what is no list of objects with certain fields."""
    if not isinstance(rows, list):
        _refuse(path, f"'{where}' has {rows!r} and no rows")
    for row in rows:
        for key, kind in fields.items():
            if not _has(row, key, kind):
                _refuse(path, f"a row of '{where}' has no right '{key}'")


def _check_optional(where: str, row, fields: dict, path: Path) -> None:
    """Refuse fields of another type than ours; they need not be there."""
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


def _ours(folder: Path) -> bool:
    """Whether a folder has results of the block, right inside."""
    checkpoint = folder / "checkpoint"
    if checkpoint.is_dir() and any(map(is_quantized, checkpoint.iterdir())):
        return True
    report, plan = folder / "report.json", folder / "plan.json"
    return report.is_file() or plan.is_file()


def _recipe_folder(given: Path, ptq: Path) -> Path:
    """Return the output folder of the recipe that a results folder is in.

    The block's ``output_folder`` may lie deeper than ``ptq``.
    """
    if given != ptq:
        return given
    near = (ptq, *list(ptq.resolve().parents)[:3])
    with_yaml = (f for f in near if (f / "hyperparams.yaml").is_file())
    return next(with_yaml, ptq.parent)


def is_quantized(path: Path) -> bool:
    """Whether a file claims to be ours: safetensors, by its first bytes.

    The toolkit's own ``*.ckpt`` are pickles or text. One of ours that is
    damaged must not pass for a tokenizer: reading its header tells.
    """
    if path.suffix != ".ckpt" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(23)[8:] == b'{"__metadata__"'
