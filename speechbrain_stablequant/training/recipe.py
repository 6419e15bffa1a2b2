"""``method: quantization_aware`` for a recipe: train once, load when needed.

Everything is below ``<output_folder>/ptq/training/<knobs>``: the plan that
training started from and the toolkit's checkpoints. Another choice of knobs is
another folder; the same one is resumed.
"""

import json
from pathlib import Path
from typing import Any, Callable

import speechbrain as sb
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.coverage import cover
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.guard import guarded
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.pipeline import Planned
from speechbrain_stablequant.plan import QuantizationPlan
from speechbrain_stablequant.search import fingerprint, weights_digest
from speechbrain_stablequant.settings import Settings
from speechbrain_stablequant.training.loop import TrainingLoop

__all__ = ["RecipeTraining"]

logger = get_logger(__name__)


class RecipeTraining:
    """The training of one block of the hparams.

    Arguments
    ---------
    settings : Settings
        The knobs.
    folder : Path
        Folder of the plugin's results.
    """

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        knobs = fingerprint(settings.search_identity())[:8]
        self.folder = folder / "training" / knobs
        self.results = folder

    def train(
        self,
        brain: sb.Brain,
        conversion: Conversion,
        start: Callable[[], Planned],
        fit: tuple[Callable, dict[str, Any]],
        names: tuple[str, str],
    ) -> None:
        """Train, or go on where an interrupted training stopped.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain, with the float weights to start from.
        conversion : Conversion
            Its modules, in float.
        start : callable
            Calibrates and returns the plan to start from.
        fit : tuple
            The recipe's own ``fit`` and the arguments of its call.
        names : tuple
            Suffix of files and label of log lines, see `guarded`.
        """
        digest = weights_digest(conversion.root)
        if not self._started_from(digest):
            planned = start()
            run_on_main(self._note_start, args=[planned.plan, digest])
        loop = self._loop(brain, conversion)
        with guarded(brain, *names, self.results, spared=loop.checkpointer):
            loop.run(*fit)

    def planned(
        self, brain: sb.Brain, conversion: Conversion, keys: dict
    ) -> Planned:
        """Return plan and integers of the best checkpoint of the training.

        What is not quantized (norms, biases) gets the values from training;
        the caller brings back those from before.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        conversion : Conversion
            Its modules, in float.
        keys : dict
            ``min_key`` and ``max_key``, as in ``evaluate``.

        Raises
        ------
        CheckpointError
            If there is no such training.
        """
        if not (self.folder / "plan.json").is_file():
            raise CheckpointError(
                f"There is no quantization-aware training in {self.folder}. "
                "Run the recipe without --test_only, so that it trains; with "
                "other knobs it is another training."
            )
        loop = self._loop(brain, conversion)
        found = loop.load(keys)
        plan, weights = loop.result()
        conversion.dequantize()
        coverage = cover(conversion, plan, self.settings)
        report = {"training": {"folder": str(self.folder), **found}}
        return Planned(plan, coverage, report, weights=weights)

    def _loop(self, brain, conversion) -> TrainingLoop:
        plan = QuantizationPlan.load(self.folder / "plan.json")
        return TrainingLoop(
            brain, conversion, plan, self.settings, self.folder / "save"
        )

    def _started_from(self, digest: str) -> bool:
        """Return whether the folder has a training of these float weights."""
        start = self.folder / "start.json"
        if not start.is_file():
            return False
        before = json.loads(start.read_text(encoding="utf-8")).get("weights")
        if before == digest:
            return True
        aside = self.folder.with_name(f"{self.folder.name}.{before[:8]}")
        logger.warning(
            "The float weights are others than those that the training in %s "
            "started from: it moves to %s, and a new one begins.",
            self.folder,
            aside.name,
        )
        run_on_main(self.folder.rename, args=[aside])
        return False

    def _note_start(self, plan: QuantizationPlan, digest: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        plan.save(self.folder / "plan.json")
        text = json.dumps({"weights": digest}) + "\n"
        (self.folder / "start.json").write_text(text, encoding="utf-8")
