"""Compare quantization methods on a trained recipe, over one float pass.

    python -m benchmarks.methods recipes/SpeechCommands/ASR/CTC/train.py \
        recipes/SpeechCommands/ASR/CTC/hparams/wav2vec2_small.yaml \
        --data_folder DATA --output_folder results/wav2vec2_small/1986

Runs the recipe with ``--test_only`` and, instead of its own ``ptq`` block, one
that tries every method at every width. Prints a Markdown table and writes
``<output_folder>/ptq/methods.json``, to which a later run with other cells of
the grid adds. All further arguments go to the recipe.
Limit the grid with ``--ptq '{widths: [W8A8], methods: [max]}'``.
"""

import dataclasses
import json
import sys
from pathlib import Path

from speechbrain.utils.logger import get_logger

from benchmarks.recipe import run_recipe
from speechbrain_stablequant.recipe.evaluator import find_metrics
from speechbrain_stablequant.recipe.isolation import test_name
from speechbrain_stablequant.recipe.quantizer import PostTrainingQuantizer
from speechbrain_stablequant.report import TestResult
from speechbrain_stablequant.report.data import environment

logger = get_logger(__name__)

METHODS = (
    "max",
    "percentile",
    "mse",
    "entropy",
    "stablequant",
    "stablequant_entropy",
)
WIDTHS = ("W8A8", "W4A8", "W8A6", "W6A6", "W8A4", "W4A4")


class MethodComparison(PostTrainingQuantizer):
    """A ``ptq`` block that tries a grid of methods and widths.

    Arguments
    ---------
    widths : list of str
        Widths to try.
    methods : list of str
        Observers (for ``uniform``), ``stablequant``, or ``stablequant`` and
        the observer of its third step: ``stablequant_entropy``.
    **options : dict
        As for `PostTrainingQuantizer`.
    """

    def __init__(self, widths=WIDTHS, methods=None, **options):
        super().__init__(**options)
        self.widths = widths
        self.methods = methods or METHODS
        self.rows = []

    def evaluate(self, brain, run, keys):
        """Run the float pass once, then one quantized pass for each cell."""
        base, name = self.settings, test_name(brain, set())
        loss = run()
        metrics = find_metrics(brain)
        top = self.run_of(brain).folder
        for method in self.methods:
            for width in self.widths:
                self.settings = dataclasses.replace(
                    base, bits=width, **_options(method)
                )
                self.planner.last, self.report = None, None
                self.output_folder = top / "methods" / f"{method}_{width}"
                result = TestResult(name, loss, float_metrics=metrics)
                self.quantize(self.run_of(brain), run, result)
                self.rows.append(
                    {"method": method, "width": width, **self.report.to_dict()}
                )
        self.settings, self.output_folder = base, None
        self._write(top)
        return loss

    def _write(self, folder: Path) -> None:
        """Write all rows, those of earlier runs included, and the table."""
        for row in self.rows:
            row.pop("coverage", None)
            row.pop("clipping", None)
        path = folder / "methods.json"
        rows = {}
        if path.is_file():
            rows = {_key(row): row for row in json.loads(path.read_text())}
        rows.update({_key(row): row for row in self.rows})
        path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        print(markdown(list(rows.values()), self.widths))
        print(", ".join(f"{k} {v}" for k, v in environment().items()))


def _options(method: str) -> dict:
    """Return the options that stand for a row of the table."""
    if method.startswith("stablequant"):
        observer = method[len("stablequant_") :] or "mse"
        return {"method": "stablequant", "observer": observer}
    return {"method": "uniform", "observer": method}


def _key(row: dict) -> tuple:
    return row["method"], row["width"], row["tests"][-1]["name"]


def markdown(rows, widths) -> str:
    """Return a table: a row for each method, a column for each width."""
    tests = list(dict.fromkeys(row["tests"][-1]["name"] for row in rows))
    lines = []
    for test in tests:
        mine = [r for r in rows if r["tests"][-1]["name"] == test]
        metric = next(k for k in mine[0]["tests"][-1]["metrics"] if k == "WER")
        float_value = mine[0]["tests"][-1]["metrics"][metric]["float"]
        lines += [f"**{test}**, {metric} of the float model: {float_value:.2f}"]
        lines += ["", "| method | " + " | ".join(widths) + " |"]
        lines += ["|---" * (len(widths) + 1) + "|"]
        for method in dict.fromkeys(r["method"] for r in mine):
            cells = {
                r["width"]: score_cell(r["tests"][-1]["metrics"][metric])
                for r in mine
                if r["method"] == method
            }
            row = " | ".join(cells.get(w, "") for w in widths)
            lines.append(f"| {method} | {row} |")
        sizes = {r["width"]: size_ratio(r["files"]) for r in mine}
        row = " | ".join(
            f"{sizes[w]:.1%}" if w in sizes else "" for w in widths
        )
        lines += [f"| *bytes of float* | {row} |", ""]
    return "\n".join(lines)


def score_cell(row) -> str:
    return (
        f"{row['quantized']:.2f} ({row['change']:+.2f} "
        f"[{row['low']:+.2f}, {row['high']:+.2f}])"
    )


def size_ratio(files) -> float:
    after = sum(f["num_bytes"] for f in files)
    return after / sum(f["float_num_bytes"] for f in files)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    run_recipe("benchmarks.methods.MethodComparison", *sys.argv[1:])
