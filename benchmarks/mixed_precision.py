"""Compare mixed precision with uniform quantization, over one float pass.

    python -m benchmarks.mixed_precision \
        recipes/VoxCeleb/SpeakerRec/train_speaker_embeddings.py \
        recipes/VoxCeleb/SpeakerRec/hparams/train_ecapa_tdnn_mini.yaml \
        --data_folder DATA --output_folder results/ecapa_tdnn_mini/1986 \
        --ptq '{modules: [embedding_model], objective: EER}'

Runs the recipe with ``--test_only`` and, instead of its own ``ptq`` block, one
that tries each row of the table: uniform quantization, the selection of layers
of the ECAPA-TDNN framework, and searches under a budget. Quantized passes run
on OpenVINO's integer kernels (``runtime: reference`` for plain torch). Prints
a Markdown table, writes ``<output_folder>/ptq/mixed_precision.json``, to which
a later run with other rows adds, and a picture. Searches share what they have
measured. All further arguments go to the recipe.
Limit the rows with ``--ptq '{rows: [uniform_mse, max_drop]}'``.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

from speechbrain.utils.logger import get_logger

from benchmarks.mixed_precision_table import (
    markdown,
    metric_names,
    runtimes,
    test_names,
    test_of,
)
from benchmarks.recipe import run_recipe
from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.methods.presets import preset_options
from speechbrain_stablequant.recipe.isolation import test_name
from speechbrain_stablequant.recipe.passes import float_pass
from speechbrain_stablequant.recipe.quantizer import PostTrainingQuantizer
from speechbrain_stablequant.report import TestResult
from speechbrain_stablequant.report.data import environment
from speechbrain_stablequant.report.mixed_precision import bits_by_type
from speechbrain_stablequant.report.pareto import (
    Front,
    FrontPoint,
    mark_efficient,
)

logger = get_logger(__name__)

MAX_DROP = 0.07  # points of EER that the ECAPA-TDNN framework costs
PAPER = ("W8A8", "W32")
WIDTHS = ("W2A8", "W3A8", "W4A8", "W8A8", "W16", "W32")


def _uniform(observer: str, bits: str = "W8A8", symmetric=True) -> dict:
    return {
        "method": "uniform",
        "observer": observer,
        "bits": bits,
        "activation_symmetric": symmetric,
        "activation_signed": symmetric,
    }


def _mixed(candidates=WIDTHS, target_size=None, ranking="distance") -> dict:
    return {
        "method": "mixed_precision",
        "candidates": candidates,
        "target_size": target_size,
        "ranking": ranking,
        "observer": "mse",
        # After a ReLU half of a symmetric range would stay unused.
        "activation_symmetric": False,
        "activation_signed": False,
    }


ROWS = {
    "uniform_max": _uniform("max"),
    "uniform_percentile": _uniform("percentile"),
    "uniform_mse": _uniform("mse"),
    "uniform_entropy": _uniform("entropy"),
    "uniform_mse_affine": _uniform("mse", symmetric=False),
    "uniform_mse_affine_W4A8": _uniform("mse", "W4A8", symmetric=False),
    "uniform_mse_affine_W3A8": _uniform("mse", "W3A8", symmetric=False),
    "uniform_mse_affine_W2A8": _uniform("mse", "W2A8", symmetric=False),
    "preset": {
        **preset_options("ecapa_tdnn_2024"),
        "preset": "ecapa_tdnn_2024",
        "observer": "mse",
        "activation_symmetric": True,
        "activation_signed": True,
    },
    "max_drop_8_32_metric": _mixed(PAPER, ranking="metric"),
    "max_drop_8_32": _mixed(PAPER),
    "max_drop": _mixed(),
    "target_0.25": _mixed(target_size=0.25),
    "target_0.125": _mixed(target_size=0.125),
    "target_0.1": _mixed(target_size=0.1),
}


class MixedPrecisionComparison(PostTrainingQuantizer):
    """A ``ptq`` block that tries the rows of the table.

    Arguments
    ---------
    rows : list of str
        Names of rows.
    runtime : str
        As for `PostTrainingQuantizer`; integer kernels by default.
    **options : dict
        As for `PostTrainingQuantizer`; ``max_drop`` is that of the rows which
        have such a budget.
    """

    def __init__(self, rows=tuple(ROWS), runtime="openvino", **options):
        super().__init__(runtime=runtime, **options)
        for row in rows:
            check_choice("row", row, ROWS)
        # The preset has inputs of some layers only to calibrate: what it saw
        # does not serve the others, what they saw serves the preset.
        self.rows = sorted(rows, key=lambda row: row == "preset")
        self.results = {}
        self._kept: dict[str, tuple] = {}
        self._names: set[str] = set()
        self._search_folder = None

    def evaluate(self, brain, run, keys):
        """Run the float pass once, then one quantized pass for each row."""
        base, output_folder = self.settings, self.output_folder
        top = self.run_of(brain).folder
        self._search_folder = top / "mixed_precision"
        scored = TestResult(test_name(brain, self._names))
        self._names.add(scored.name)
        start = float_pass(self.run_of(brain), run, scored)
        for row in self.rows:
            self.settings = dataclasses.replace(base, **row_options(row, base))
            self.output_folder = self._search_folder / row
            self.planner.last, self.report = self._kept.get(row, (None, None))
            result = dataclasses.replace(scored)
            try:
                self.quantize(self.run_of(brain), run, result, start)
                self.results[row] = self._result(row)
            except StableQuantError as err:
                logger.warning("Row %s failed: %s", row, err)
                failed = f"{type(err).__name__}: {err}"
                self.results[row] = {"row": row, "failed": failed}
            self._kept[row] = self.planner.last, self.report
        self.settings, self.output_folder = base, output_folder
        self._write(top)
        return scored.float_loss

    def plan(self, run, conversion):
        """Plan with the journal that the rows share."""
        run = dataclasses.replace(run, folder=self._search_folder)
        return super().plan(run, conversion)

    def _result(self, row: str) -> dict:
        plain = self.report.to_dict()
        for key in ("coverage", "clipping"):
            del plain[key]
        search = {**plain["search"]}
        search.pop("sensitivity", None)  # in the row's own report.json
        return {
            "row": row,
            "knobs": {
                key: value
                for key, value in dataclasses.asdict(self.settings).items()
                if key in row_options(row, self.settings)
            },
            "bits": bits_by_type(self.report.planned),
            "num_bytes": sum(f["num_bytes"] for f in plain["files"]),
            "float_num_bytes": sum(
                f["float_num_bytes"] for f in plain["files"]
            ),
            **plain,
            "search": search,
        }

    def _write(self, folder: Path) -> None:
        """Write all rows, those of earlier runs included, and the table."""
        path = folder / "mixed_precision.json"
        rows = {}
        if path.is_file():
            rows = {row["row"]: row for row in json.loads(path.read_text())}
        # As JSON gives them back, like those of earlier runs.
        rows.update(json.loads(json.dumps(self.results)))
        rows = [rows[name] for name in ROWS if name in rows]
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(markdown(rows))
        print(f"Quantized passes: {runtimes(rows)}.")
        print(", ".join(f"{k} {v}" for k, v in environment().items()))
        for drawn in draw(rows, folder, self.settings.max_drop or MAX_DROP):
            print(drawn)


def row_options(row: str, base) -> dict:
    """Return the options that stand for a row, with its budget."""
    options = {"max_drop": None, "target_size": None, **ROWS[row]}
    if row.startswith("max_drop"):
        options["max_drop"] = (
            MAX_DROP if base.max_drop is None else base.max_drop
        )
    return options


def draw(rows: list[dict], folder: Path, max_drop: float) -> list[Path]:
    """Draw the rows of each test set: metric against bytes on disk.

    The metric is the one that the searches looked at, else the first.
    """
    from speechbrain_stablequant.report import plots

    done = [row for row in rows if "failed" not in row]
    searched = {row["search"].get("metric") for row in done}
    paths = []
    for name in test_names(done):
        found = [(row, test_of(row, name)) for row in done]
        found = [(row, test) for row, test in found if test is not None]
        names = metric_names(test for _, test in found)
        metric = next((m for m in names if m in searched), names[0])
        values = [(row, test["metrics"].get(metric)) for row, test in found]
        points = [_point(*pair) for pair in values if pair[1]]
        front = Front(
            points=[],
            extra=mark_efficient(points),
            metric=metric,
            float_value=values[0][1]["float"],
            budget={"max_drop": max_drop},
            title=f"{name}, {len(points)} plans",
        )
        ending = re.sub(r"\W+", "_", name)
        stem = folder / f"mixed_precision_{ending}"
        paths += plots.save_figure(plots.front_figure(front), stem)
    return paths


def _point(row: dict, values: dict):
    nan = float("nan")
    value = values["quantized"]
    return FrontPoint(
        ratio=row["num_bytes"] / row["float_num_bytes"],
        value=nan if value is None else value,
        change=values.get("change"),
        low=values.get("low"),
        high=values.get("high"),
        label=row["row"],
        group=row["knobs"].get("preset") or row["knobs"]["method"],
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    run_recipe(
        "benchmarks.mixed_precision.MixedPrecisionComparison", *sys.argv[1:]
    )
