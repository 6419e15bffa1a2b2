"""``method: quantization_aware`` for a recipe: train once, load when needed.

Everything is below ``<output_folder>/ptq/training``, in a folder for each
choice of options and float weights: the plan that training started from and
SpeechBrain's checkpoints. The same choice is resumed.
"""

from pathlib import Path
from typing import Any, Callable, Optional

from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.core.plan import QuantizationPlan
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.methods.coverage import cover
from speechbrain_stablequant.methods.pipeline import Planned
from speechbrain_stablequant.methods.search import fingerprint
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training.loop import TrainingLoop
from speechbrain_stablequant.recipe.isolation import isolated
from speechbrain_stablequant.recipe.run import RecipeRun

__all__ = ["RecipeTraining"]

logger = get_logger(__name__)

_PLAN = "plan.json"


class RecipeTraining:
    """The training of one block of the hparams.

    Arguments
    ---------
    settings : Settings
        The options.
    run : RecipeRun
        The run of the recipe.
    """

    def __init__(self, settings: Settings, run: RecipeRun):
        self.settings, self.run = settings, run
        self.parent = run.folder / "training"
        brain = run.brain
        if brain.debug and not brain.debug_persistently and brain.checkpointer:
            # SpeechBrain has put the checkpoints into a temporary folder.
            self.parent = Path(brain.checkpointer.checkpoints_dir) / "training"
        self.options = fingerprint(settings.search_identity())[:8]
        self.folder: Optional[Path] = None  # of the training in this process

    def train(
        self,
        digest: str,
        conversion: Conversion,
        start: Callable[[], Planned],
        fit: tuple[Callable, dict[str, Any]],
    ) -> None:
        """Train, or go on where an interrupted training stopped.

        Arguments
        ---------
        digest : str
            Of the float weights to start from.
        conversion : Conversion
            The Brain's modules with these weights.
        start : callable
            Calibrates and returns the plan to start from.
        fit : tuple
            The recipe's own ``fit`` and the arguments of its call.
        """
        self.folder = self._folder(digest)
        plan = self.folder / _PLAN
        if not plan.is_file():
            planned = start()
            run_on_main(planned.plan.save, args=[plan])
        loop = self._loop(conversion, self.folder)
        with isolated(self.run, spared=loop.checkpointer):
            loop.run(*fit)

    def planned(
        self, digest: str, conversion: Conversion, keys: dict
    ) -> Planned:
        """Return plan and integers of the best checkpoint of the training.

        What is not quantized (norms, biases) gets the values from training;
        the caller brings back those from before.

        Arguments
        ---------
        digest : str
            Of the float weights that are tested.
        conversion : Conversion
            The Brain's modules with these weights.
        keys : dict
            ``min_key`` and ``max_key``, as in ``evaluate``.

        Raises
        ------
        CheckpointError
            If there is no such training.
        """
        folder = self.folder or self._find(digest)
        loop = self._loop(conversion, folder)
        found = loop.load(keys)
        plan, weights = loop.stages.result()
        conversion.dequantize()
        coverage = cover(conversion, plan, self.settings)
        report = {"training": {"folder": str(folder), **found}}
        return Planned(plan, coverage, report, weights=weights)

    def _folder(self, digest: str) -> Path:
        return self.parent / f"{self.options}-{digest[:8]}"

    def _find(self, digest: str) -> Path:
        """Return the training of an earlier run that the test is about.

        Recipes may test other weights than those that training started from,
        an average of checkpoints for example.
        """
        own = self._folder(digest)
        trained = sorted(
            path.parent
            for path in self.parent.glob(f"{self.options}-*/{_PLAN}")
        )
        if own in trained:
            return own
        if not trained:
            raise CheckpointError(
                f"{self.parent} has no quantization-aware training with these "
                "options. Run the recipe without --test_only, so that it trains."
            )
        if len(trained) > 1:
            raise CheckpointError(
                f"{self.parent} has several trainings with these options, "
                "started from other float weights than those that are tested "
                "here: keep the one that you want of "
                + ", ".join(path.name for path in trained)
                + "."
            )
        logger.warning(
            "The training in %s did not start from the float weights that are "
            "tested here.",
            trained[0],
        )
        return trained[0]

    def _loop(self, conversion: Conversion, folder: Path) -> TrainingLoop:
        plan = QuantizationPlan.load(folder / _PLAN)
        return TrainingLoop(
            self.run.brain, conversion, plan, self.settings, folder / "save"
        )
