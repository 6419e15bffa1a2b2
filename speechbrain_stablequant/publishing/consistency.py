"""Whether plan, report and packed files of an experiment are of one run."""

import json
from dataclasses import asdict

from speechbrain_stablequant.artifacts.checkpoint_reader import read_header
from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.core.plan import LayerPlan
from speechbrain_stablequant.errors import PublishError

__all__ = ["require_one_run"]

_AGAIN = "Run the recipe once more (--test_only), so that all are of one run."


def require_one_run(experiment: Experiment) -> None:
    """Refuse an experiment whose parts contradict each other.

    Raises
    ------
    PublishError
        If the plan is another than that of the packed files, or the report is
        about files of other sizes.
    """
    packed = {
        _text(layer)
        for path in experiment.checkpoints.values()
        for layer in read_header(path)["plan"].layers.values()
    }
    planned = {_text(layer) for layer in experiment.plan.layers.values()}
    if packed - planned:
        raise PublishError(
            f"{experiment.ptq / 'plan.json'} is not the plan that the files in "
            f"{experiment.ptq / 'checkpoint'} were packed with: it was edited, "
            f"or is of another run. {_AGAIN}"
        )
    for file in experiment.report["files"]:
        path = experiment.checkpoints.get(file["name"])
        if path is None or path.stat().st_size != file["num_bytes"]:
            raise PublishError(
                f"{experiment.ptq / 'report.json'} is about a {file['name']}.ckpt "
                f"of {file['num_bytes']} bytes, which is not in "
                f"{experiment.ptq / 'checkpoint'}. {_AGAIN}"
            )


def _text(layer: LayerPlan) -> str:
    """Return a layer's plan in a form to compare, without names."""
    fields = {**asdict(layer), "unit": ""}
    return json.dumps(fields, sort_keys=True)
