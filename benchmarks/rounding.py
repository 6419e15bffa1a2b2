"""Compare GPTQ with rounding to the nearest on a trained recipe.

    python -m benchmarks.rounding recipes/SpeechCommands/ASR/CTC/train.py \
        recipes/SpeechCommands/ASR/CTC/hparams/wav2vec2_small.yaml \
        --data_folder DATA --output_folder results/wav2vec2_small/1986

Runs the recipe with ``--test_only`` and, instead of its own ``ptq`` block, one
that quantizes at several widths with each rounding, over one float pass. A cell
such as ``W3g64`` is 3-bit weights in groups of 64; without ``g`` there is one
scale for each output channel. Prints a Markdown table, intervals by the paired
bootstrap, and writes ``<output_folder>/ptq/rounding.json``, to which a later
run with other cells adds. All further arguments go to the recipe.
Limit the cells with ``--ptq '{cells: [W3, W3A8]}'``.
"""

import dataclasses
import json
import re
import sys
import time
from pathlib import Path

from benchmarks.methods import score_cell, size_ratio
from benchmarks.recipe import run_recipe
from speechbrain_stablequant.errors import KnobError
from speechbrain_stablequant.recipe.isolation import test_name
from speechbrain_stablequant.recipe.passes import float_pass
from speechbrain_stablequant.recipe.quantizer import PostTrainingQuantizer
from speechbrain_stablequant.report import TestResult
from speechbrain_stablequant.report.data import environment

CELLS = ("W4", "W4g64", "W3", "W3g64", "W4A8", "W3A8")
ROUNDINGS = ("nearest", "gptq")


class RoundingComparison(PostTrainingQuantizer):
    """A ``ptq`` block that tries each rounding in each cell.

    Arguments
    ---------
    cells : list of str
        Widths, with ``g`` and a number for groups of so many weights.
    **options : dict
        As for `PostTrainingQuantizer`; ``method`` is ``uniform`` by default.
    """

    def __init__(self, cells=CELLS, **options):
        super().__init__(**{"method": "uniform", **options})
        self.cells = list(cells)
        for cell in self.cells:
            dataclasses.replace(self.settings, **cell_options(cell))
        self.rows = []
        self._kept: dict[tuple, tuple] = {}
        self._names: set[str] = set()
        self._plan_seconds = 0.0

    def evaluate(self, brain, run, keys):
        """Run the float pass once, then a quantized one for each row."""
        base, before = self.settings, self.output_folder
        top = self.run_of(brain).folder
        scored = TestResult(test_name(brain, self._names))
        self._names.add(scored.name)
        start = float_pass(self.run_of(brain), run, scored)
        for cell in self.cells:
            results = []
            for rounding in ROUNDINGS:
                self.settings = dataclasses.replace(
                    base, rounding=rounding, **cell_options(cell)
                )
                self.output_folder = top / "rounding" / f"{cell}_{rounding}"
                results.append(dataclasses.replace(scored))
                key = cell, rounding
                row = self._run_row(brain, run, results[-1], start, key)
                row["from_nearest"] = compare(
                    results[0], results[-1], base.seed
                )
                self.rows.append(row)
        self.settings, self.output_folder = base, before
        self._write(top)
        return scored.float_loss

    def _run_row(self, brain, run, result, start, key) -> dict:
        """Score a row; its plan is made for the first test set only."""
        self.planner.last, self.report, self._plan_seconds = self._kept.get(
            key, (None, None, 0.0)
        )
        self.quantize(self.run_of(brain), run, result, start)
        self._kept[key] = self.planner.last, self.report, self._plan_seconds
        return {
            "cell": key[0],
            "rounding": key[1],
            "test": result.to_dict(self.settings.seed),
            "plan_seconds": self._plan_seconds,
            "bytes_of_float": size_ratio(self.report.files),
        }

    def plan(self, run, conversion):
        start = time.perf_counter()
        planned, is_new = super().plan(run, conversion)
        if is_new:
            self._plan_seconds = time.perf_counter() - start
        return planned, is_new

    def _write(self, folder: Path) -> None:
        """Write all rows, those of earlier runs included, and the table."""
        path, rows = folder / "rounding.json", {}
        if path.is_file():
            rows = {_key(row): row for row in json.loads(path.read_text())}
        rows.update({_key(row): row for row in self.rows})
        path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        print(markdown(list(rows.values())))
        print(", ".join(f"{k} {v}" for k, v in environment().items()))


def cell_options(cell: str) -> dict:
    """Return the options that stand for a cell."""
    match = re.fullmatch(r"(W\d+(?:A\d+)?)(?:g(\d+))?", cell)
    if match is None:
        raise KnobError(
            f"cells: '{cell}' is unknown; write W3, W3A8 or, for groups of 64 "
            "weights, W3g64."
        )
    bits, size = match.groups()
    return {
        "bits": bits,
        "weight_granularity": "per_group" if size else "per_channel",
        "weight_group_size": int(size) if size else None,
    }


def compare(nearest: TestResult, other: TestResult, seed: int) -> dict:
    """Return the change from one rounding to another, metric by metric."""
    return {
        name: metric.compare(
            nearest.metrics[name][1], items, seed=seed
        ).to_dict()
        for name, (metric, items) in other.metrics.items()
    }


def _key(row: dict) -> tuple:
    return row["cell"], row["rounding"], row["test"]["name"]


def markdown(rows: list[dict], metric: str = "WER") -> str:
    """Return a table for each test set: a row for each cell."""
    lines = []
    for test in dict.fromkeys(row["test"]["name"] for row in rows):
        mine = [row for row in rows if row["test"]["name"] == test]
        float_value = mine[0]["test"]["metrics"][metric]["float"]
        lines += [
            f"**{test}**, {metric} of the float model: {float_value:.2f}",
            "",
            "| cell | bytes of float | nearest | gptq | gptq from nearest | "
            "seconds to plan |",
            "|---|---:|---|---|---|---:|",
        ]
        for cell in dict.fromkeys(row["cell"] for row in mine):
            found = {r["rounding"]: r for r in mine if r["cell"] == cell}
            lines.append(_line(cell, found, metric))
        lines += [""]
    return "\n".join(lines)


def _line(cell: str, found: dict[str, dict], metric: str) -> str:
    nearest, other = (found[rounding] for rounding in ROUNDINGS)
    change = other["from_nearest"][metric]
    cells = [
        cell,
        f"{other['bytes_of_float']:.1%}",
        *(
            score_cell(row["test"]["metrics"][metric])
            for row in (nearest, other)
        ),
        f"{change['change']:+.2f} "
        f"[{change['low']:+.2f}, {change['high']:+.2f}]",
        f"{nearest['plan_seconds']:.0f} / {other['plan_seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    run_recipe("benchmarks.rounding.RoundingComparison", *sys.argv[1:])
