"""Collect the results of test passes; write them as table, JSON and page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.core.format import align, finite, to_json
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.metrics.pass_measure import PassMeasure
from speechbrain_stablequant.report.data import (
    environment,
    histogram_rows,
    item_rows,
    layer_rows,
)
from speechbrain_stablequant.report.loggers import log_results
from speechbrain_stablequant.report.mixed_precision import (
    chosen_bits,
    front_lines,
    save_front,
)
from speechbrain_stablequant.report.page.render import make_page
from speechbrain_stablequant.report.rows import (
    search_lines,
    size_row,
    speed_rows,
    test_rows,
    weights_line,
)
from speechbrain_stablequant.runtime import RuntimeReport

__all__ = ["Report", "TestResult"]

logger = get_logger(__name__)

HISTOGRAMS, ITEMS = "histograms.json", "items.json"

Metrics = dict[str, tuple[Metric, list[Item]]]


@dataclass
class TestResult:
    """One test set, scored in float and quantized.

    Arguments
    ---------
    name : str
        Name of the test set.
    float_loss, loss : float, optional
        Average loss of the float and of the quantized pass.
    float_seconds, seconds : float, optional
        Duration of the passes. Without a runtime, the quantized pass runs no
        integer kernels: its duration says nothing about speed.
    float_measure, measure : PassMeasure, optional
        Speed and memory of the passes; of the quantized one only when it ran
        on a runtime.
    runtime : RuntimeReport, optional
        How the runtime executed the quantized model.
    float_metrics, metrics : dict
        Metric and items by metric name.
    """

    __test__ = False  # pytest takes the name for a test's

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
        """Keep the measure of a pass on a runtime, without the time to compile."""
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
            row["items"], row["unit"] = len(items), metric.unit
            row["lower_is_better"] = metric.lower_is_better
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
    """Return the change, with an interval if the items can be paired."""
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
        A short name for the plan, such as ``W8A8 stablequant``.
    planned : Planned
        The plan with its coverage and search report.

    Attributes
    ----------
    weights : dict, optional
        Which checkpoint was quantized, where the recipe did not choose it:
        see `speechbrain_stablequant.recipe.checkpoint_selection`.
    """

    def __init__(self, label: str, planned: Planned):
        self.label, self.planned = label, planned
        self.files: Optional[list[dict]] = None
        self.tests: list[dict] = []
        self.items: dict[str, dict] = {}
        self.runtime: Optional[RuntimeReport] = None
        self.weights: Optional[dict] = None

    def names(self) -> list[str]:
        """Return the names of the test sets so far."""
        return [test["name"] for test in self.tests]

    def add(self, result: TestResult, seed: int) -> None:
        """Add the result of a test set."""
        self.tests.append(result.to_dict(seed))
        self.items[result.name] = item_rows(
            result.float_metrics, result.metrics
        )
        self.runtime = result.runtime

    def to_dict(self) -> dict:
        """Return all of the report as plain data."""
        planned = self.planned
        plan, search = planned.plan, planned.search
        return {
            "label": self.label,
            "plan": {"method": plan.method, "settings": dict(plan.settings)},
            "tests": self.tests,
            "files": self.files or [],
            "coverage": {
                "fraction": planned.coverage.fraction,
                "parameters": planned.coverage.to_list(),
            },
            "layers": layer_rows(planned),
            "search": search,
            "chosen_bits": chosen_bits(plan, search) if self._has_front else {},
            "clipping": self._clipping(),
            "histograms": HISTOGRAMS if planned.statistics else None,
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

        Beside it: ``histograms.json`` after a calibration, ``items.json``
        after a test, and tables after a mixed-precision search, see
        `save_front`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        _write(path, self.to_dict(), indent=1)
        if self.planned.statistics:
            rows = histogram_rows(self.planned)
            _write(folder / HISTOGRAMS, rows, separators=(",", ":"))
        if self.items:
            _write(folder / ITEMS, self.items, separators=(",", ":"))
        if self._has_front:
            save_front(folder, self.planned)
        return path

    # -- the table ---------------------------------------------------------------

    def table(self) -> str:
        """Return the table for the terminal and ``train_log.txt``."""
        rows = [("", "float", "quantized", "change [95 % interval]")]
        rows += [
            (f"{test['name']} {label}", *cells)
            for rows_of in (test_rows, speed_rows)
            for test in self.tests
            for label, *cells in rows_of(test)
        ]
        rows += [size_row(file) for file in self.files or []]
        lines = [f"PTQ {self.label}", *align(rows), *self._remarks()]
        return "\n".join(lines)

    def announce(self, train_logger=None) -> None:
        """Log the table, and add it to the file of the train logger."""
        table = self.table()
        logger.info("Post-training quantization\n%s", table)
        path = getattr(train_logger, "save_file", None)
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(table + "\n")

    def publish(self, folder: Path, train_logger=None, plots: bool = True):
        """Write, announce and draw the results, in this order.

        An error in pictures or in a logger becomes a warning: by then the
        results are on disk.

        Arguments
        ---------
        folder : Path
            Where the files go.
        train_logger : speechbrain.utils.train_logger.TrainLogger, optional
            The recipe's.
        plots : bool
            Whether to make ``report.html`` and ``plots``.
        """
        self.save(folder)
        self.announce(train_logger)
        pictures = _draw(folder) if plots else {}
        log_results(
            train_logger, finite(self.to_dict()), self.table(), pictures
        )

    def _remarks(self) -> list[str]:
        planned = self.planned
        lines = [] if self.weights is None else [weights_line(self.weights)]
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
        lines += search_lines(planned.search)
        if self._has_front:
            lines += front_lines(planned)
        if self.runtime is not None:
            lines += self.runtime.lines()
        return lines


def _write(path: Path, value, **layout) -> None:
    """Write strict JSON."""
    path.write_text(to_json(value, **layout) + "\n", encoding="utf-8")


def _draw(folder: Path) -> dict[str, Path]:
    """Make the page; return its pictures, none where that fails."""
    try:
        page, pictures = make_page(folder)
    except Exception as err:
        logger.warning(
            "The page %s could not be made (%s: %s); the results are in "
            "report.json beside it.",
            folder / "report.html",
            type(err).__name__,
            err,
        )
        return {}
    logger.info("Report: %s", page)
    return pictures
