"""``stablequant apply``: quantize a float checkpoint by a plan, no recipe run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

NAME = "apply"
HELP = "Apply a plan to the float checkpoint of an experiment."
EXAMPLES = """
stablequant apply edited.json results/wav2vec2/1986 --output w4 --min-key WER
stablequant apply other/ptq/plan.json results/1986 --output new --recipe .
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("plan", help="a plan.json, edited or from another run")
    parser.add_argument("experiment", help="output folder of the recipe")
    parser.add_argument(
        "--output",
        required=True,
        help="new folder for checkpoint/, plan.json and coverage.json",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", help="float checkpoint: its folder, CKPT+..."
    )
    which.add_argument("--min-key", help="the one with the lowest, as WER")
    which.add_argument("--max-key", help="the one with the highest, as ACC")
    parser.add_argument(
        "--recipe",
        help="folder of train.py, for classes of the recipe; by default where "
        "hyperparams.yaml says that it came from",
    )
    parser.add_argument(
        "--min-coverage",
        type=float,
        default=0.95,
        help="least part of the weight bytes to be quantized (0.95)",
    )


def run(arguments) -> dict:
    """Build, load, convert, write."""
    from speechbrain_stablequant.artifacts.float_model import load_float_model
    from speechbrain_stablequant.artifacts.rerun import measure_command
    from speechbrain_stablequant.core.files import check_output, filled
    from speechbrain_stablequant.core.plan import QuantizationPlan

    output = check_output(arguments.output)
    folder = _experiment_folder(arguments.experiment)
    plan = QuantizationPlan.load(arguments.plan)
    settings = _settings(plan, arguments.min_coverage)
    with _no_bars():
        model = load_float_model(
            folder,
            arguments.recipe,
            arguments.checkpoint,
            arguments.min_key,
            arguments.max_key,
        )
    with filled(output) as work:
        coverage, files = _convert(model, plan, settings, work)
    for file in files:
        file["path"] = str(output / "checkpoint" / Path(file["path"]).name)
    rest = [r for r in coverage.rows if r.status != "quantized" and r.is_weight]
    return {
        "output": str(output),
        "checkpoint": str(model.checkpoint.path),
        "other_checkpoints": model.others,
        "chosen_by": _choice(arguments),
        "coverage": coverage.fraction,
        "not_quantized": [vars(row).copy() for row in rest],
        "files": files,
        "measure_with": measure_command(folder, output / "plan.json"),
    }


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers: loading is quick."""
    try:
        from transformers.utils import logging
    except ImportError:  # no bars without transformers
        yield
        return
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _experiment_folder(given: str) -> Path:
    """Return the output folder of the recipe; it need not be quantized yet."""
    from speechbrain_stablequant.artifacts.experiment import Experiment

    folder = Path(given)
    if (folder / "hyperparams.yaml").is_file():
        return folder
    return Experiment(folder).hyperparams.parent


def _settings(plan, min_coverage: float):
    """Return settings under which the coverage of a plan is judged."""
    from speechbrain_stablequant.methods.settings import Settings

    keep = plan.settings.get("keep")
    keep = keep if isinstance(keep, (list, tuple)) else ()
    return Settings(min_coverage=min_coverage, keep=tuple(map(str, keep)))


def _convert(model, plan, settings, folder: Path):
    """Quantize and write; return the coverage and the files."""
    from speechbrain_stablequant.artifacts.run_checkpoints import (
        export_checkpoints,
        save_plan,
    )
    from speechbrain_stablequant.core.format import to_json
    from speechbrain_stablequant.layers import Conversion
    from speechbrain_stablequant.methods.pipeline import given_plan

    with Conversion(model.root) as conversion:
        coverage = given_plan(conversion, settings, plan).coverage
        conversion.apply_plan(plan)
        files = export_checkpoints(
            folder / "checkpoint", conversion.root, plan, model.checkpointer
        )
    save_plan(plan, folder / "plan.json")
    rows = {"fraction": coverage.fraction, "parameters": coverage.to_list()}
    text = to_json(rows, indent=1) + "\n"
    (folder / "coverage.json").write_text(text, encoding="utf-8")
    return coverage, files


def _choice(arguments) -> str:
    if arguments.checkpoint:
        return "by name"
    if arguments.min_key:
        return f"lowest {arguments.min_key}"
    if arguments.max_key:
        return f"highest {arguments.max_key}"
    return "most recent"


def lines(result: dict) -> list[str]:
    """Say what was written, and how to measure it."""
    from speechbrain_stablequant.cli.output import coverage_lines, size_lines

    found = [
        f"wrote {result['output']}",
        f"float weights: {result['checkpoint']} ({result['chosen_by']})",
    ]
    if result["chosen_by"] == "most recent" and result["other_checkpoints"]:
        found.append(
            f"  there are {result['other_checkpoints']} more checkpoints; "
            "--min-key WER takes the best instead"
        )
    found += ["", *size_lines(result["files"]), ""]
    left = result["not_quantized"]
    found += coverage_lines(
        {"fraction": result["coverage"], "not_quantized": left}
    )
    return [*found, "to measure it:", f"  {result['measure_with']}"]
