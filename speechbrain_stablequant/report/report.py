"""Collect results of test passes and write them down."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.meter import PassMeasure
from speechbrain_stablequant.pipeline import Planned
from speechbrain_stablequant.report.environment import environment
from speechbrain_stablequant.report.front import front_lines, save_front
from speechbrain_stablequant.report.tables import (
    align,
    cost_line,
    decimals,
    interval,
    megabytes,
    number,
)
from speechbrain_stablequant.runtime import RuntimeReport
from speechbrain_stablequant.scoring import Item, Metric

__all__ = ["Report", "TestResult"]

logger = get_logger(__name__)

Metrics = dict[str, tuple[Metric, list[Item]]]


@dataclass
class TestResult:
    """One test set, scored before and after.

    Arguments
    ---------
    name : str
        Name of the test set.
    float_loss, loss : float, optional
        Average loss of the float and of the quantized pass.
    float_seconds, seconds : float, optional
        Duration of the passes. Without a runtime the quantized one says
        nothing about the speed of integer kernels.
    float_measure, measure : PassMeasure, optional
        Speed and memory of the passes; of the quantized one only when it ran
        on a runtime.
    runtime : RuntimeReport, optional
        What the runtime made of the quantized model.
    float_metrics, metrics : dict
        Metric and items by metric name.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    name: str
    float_loss: Optional[float] = None
    loss: Optional[float] = None
    float_seconds: Optional[float] = None
    seconds: Optional[float] = None
    float_metrics: Metrics = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    float_measure: Optional[PassMeasure] = None
    measure: Optional[PassMeasure] = None
    runtime: Optional[RuntimeReport] = None

    def measure_quantized(self, measure: PassMeasure, acceleration) -> None:
        """Keep the measure of a pass on a runtime, less what compiling took."""
        if acceleration is not None:
            self.runtime = acceleration.report()
            measure.seconds -= self.runtime.seconds
            self.measure = measure

    def to_dict(self, seed: int) -> dict:
        """Return plain data, with a paired-bootstrap interval if comparable."""
        rows = {"loss": {"float": self.float_loss, "quantized": self.loss}}
        for name, (metric, items) in self.metrics.items():
            row = {"float": None, "quantized": metric.value(items)}
            before = self.float_metrics.get(name)
            if before is not None:
                row["float"] = metric.value(before[1])
                row["float_interval"] = _ends(metric, before[1], seed)
                row.update(_change(before[1], items, metric, seed))
            row["items"] = len(items)
            rows[name] = row
        return {
            "name": self.name,
            "metrics": rows,
            "float_pass_seconds": self.float_seconds,
            "quantized_pass_seconds": self.seconds,
            "float_speed": _plain(self.float_measure),
            "quantized_speed": _plain(self.measure),
            "runtime": _plain(self.runtime),
        }


def _plain(value) -> Optional[dict]:
    return None if value is None else value.to_dict()


def _ends(metric: Metric, items, seed: int) -> list[Optional[float]]:
    """Return the ends of the interval of one system's metric."""
    found = metric.interval(items, seed=seed).to_dict()
    return [found["low"], found["high"]]


def _change(before, after, metric: Metric, seed: int) -> dict:
    """Return the change with its interval; without, if items do not pair."""
    try:
        return metric.compare(before, after, seed=seed).to_dict()
    except StableQuantError:
        change = metric.value(after) - metric.value(before)
        return {"change": change, "low": None, "high": None}


class Report:
    """The results of one plan over any number of test sets.

    Arguments
    ---------
    label : str
        A few words for the plan.
    planned : Planned
        The plan with its coverage and search report.

    Attributes
    ----------
    weights : dict, optional
        Which checkpoint was quantized, where the recipe did not choose it:
        see `speechbrain_stablequant.kept_weights`.
    """

    def __init__(self, label: str, planned: Planned):
        self.label, self.planned = label, planned
        self.files: Optional[list[dict]] = None
        self.tests: list[dict] = []
        self.runtime: Optional[RuntimeReport] = None
        self.weights: Optional[dict] = None

    def names(self) -> list[str]:
        """Return the names of the test sets so far."""
        return [test["name"] for test in self.tests]

    def add(self, result: TestResult, seed: int) -> None:
        """Add the result of a test set."""
        self.tests.append(result.to_dict(seed))
        self.runtime = result.runtime

    def to_dict(self) -> dict:
        """Return all of the report as plain data."""
        planned = self.planned
        return {
            "label": self.label,
            "tests": self.tests,
            "files": self.files or [],
            "coverage": {
                "fraction": planned.coverage.fraction,
                "parameters": planned.coverage.to_list(),
            },
            "search": planned.search,
            "clipping": self._clipping(),
            "unreached_layers": planned.unreached,
            "weights": self.weights,
            "runtime": _plain(self.runtime),
            "environment": environment(),
        }

    def _clipping(self) -> list[dict]:
        return [
            {
                "layer": name,
                "input": slot,
                "unit": layer.unit,
                "percentile": plan.percentile,
                "range": [plan.low, plan.high],
                "clipped": plan.clipped,
            }
            for name, layer in self.planned.plan.layers.items()
            for slot, plan in layer.inputs.items()
        ]

    @property
    def _has_front(self) -> bool:
        return self.planned.search.get("method") == "mixed_precision"

    def save(self, folder: Path) -> Path:
        """Write ``report.json`` and return its path.

        Beside it, after a mixed-precision search: see `save_front`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        plain = _finite(self.to_dict())
        text = json.dumps(plain, indent=1, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        if self._has_front:
            save_front(folder, self.planned)
        return path

    # -- the table ---------------------------------------------------------------

    def table(self) -> str:
        """Return the table for the terminal and ``train_log.txt``."""
        lines = [f"PTQ {self.label}"]
        lines += align(
            [("", "float", "quantized", "change [95 % interval]")]
            + [row for test in self.tests for row in _test_rows(test)]
            + [row for test in self.tests for row in _speed_rows(test)]
            + [_size_row(file) for file in self.files or []]
        )
        lines += self._remarks()
        return "\n".join(lines)

    def announce(self, train_logger=None) -> None:
        """Log the table, and add it to the file of the train logger."""
        table = self.table()
        logger.info("Post-training quantization\n%s", table)
        path = getattr(train_logger, "save_file", None)
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(table + "\n")

    def _remarks(self) -> list[str]:
        planned = self.planned
        lines = [] if self.weights is None else [_weights_line(self.weights)]
        lines += [
            f"weights quantized: {planned.coverage.fraction:.1%} of bytes"
        ]
        rest = [r for r in planned.coverage.rows if r.is_weight]
        rest = [r for r in rest if r.status != "quantized"]
        for row in sorted(rest, key=lambda r: -r.num_bytes)[:5]:
            lines.append(f"  not {row.name}: {row.detail}")
        if planned.unreached:
            lines.append(
                f"  inputs left float in {len(planned.unreached)} layers that "
                "validation never reaches"
            )
        lines += _search_lines(planned.search)
        if self._has_front:
            lines += front_lines(planned)
        if self.runtime is not None:
            lines += self.runtime.lines()
        return lines


def _finite(value):
    """Replace nan and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _test_rows(test: dict):
    for name, row in test["metrics"].items():
        values = [row["float"], row["quantized"]]
        digits = decimals(*values)
        before, after = (number(value, digits) for value in values)
        yield f"{test['name']} {name}", before, after, interval(row, digits)


def _speed_rows(test: dict):
    """Return real-time factor and memory, where a runtime was measured."""
    before, after = test["float_speed"], test["quantized_speed"]
    if after is None:
        return
    name = test["name"]
    for key, label in (
        ("real_time_factor", "real-time factor"),
        ("seconds", "seconds in the model"),
    ):
        old, new = (before or {}).get(key), after[key]
        if new is not None:
            ratio = f"{old / new:.2f} times faster" if old else ""
            yield f"{name} {label}", number(old, 4), number(new, 4), ratio
            break
    if after["peak_num_bytes"] is not None:
        old = (before or {}).get("peak_num_bytes")
        yield (
            f"{name} peak memory",
            "-" if old is None else megabytes(old),
            megabytes(after["peak_num_bytes"]),
            "process, float model included",
        )


def _size_row(file: dict):
    ratio = file["num_bytes"] / file["float_num_bytes"]
    return (
        f"{file['name']}.ckpt",
        megabytes(file["float_num_bytes"]),
        megabytes(file["num_bytes"]),
        f"{ratio:.1%} of the bytes",
    )


def _weights_line(weights: dict) -> str:
    """Say which weights were quantized, where the recipe does not choose."""
    if weights["checkpoint"] is None:
        return "quantized: the weights that fit left"
    line = f"quantized: {weights['checkpoint']}"
    if weights["key"] is not None:
        line += f", {weights['choice']} {weights['key']} ({weights['value']:g})"
    return line


def _search_lines(search: dict) -> list[str]:
    """Say which units were flagged, what was cut and what it cost."""
    if "flagged" not in search:
        return []
    if not search["flagged"]:
        lines = ["flagged units: none"]
    else:
        lines = ["flagged units:"]
    for unit in search["flagged"]:
        rise = search["sensitivity"][unit]["change"]
        cut = search["percentiles"][unit]["chosen"]
        lines.append(f"  {unit}: {rise:+.2f} with max, cut at {cut:g} %")
    lines.append(cost_line(search["cost"]))
    return lines
