"""The plan for what a Brain holds: searched, trained, given or remembered."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from speechbrain.utils.distributed import if_main_process
from torch import nn

from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.module_state import unchanged
from speechbrain_stablequant.methods.pipeline import Planned, make_plan
from speechbrain_stablequant.methods.search import weights_digest
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.recipe.checkpoint_selection import held_modules
from speechbrain_stablequant.recipe.evaluator import BrainEvaluator
from speechbrain_stablequant.recipe.isolation import guarded
from speechbrain_stablequant.recipe.training import RecipeTraining
from speechbrain_stablequant.recipe.validation import (
    BatchSample,
    calibrate,
    preserved,
    validation_loader,
    validation_stage,
)

__all__ = ["Planner"]


class Planner:
    """Makes plans for a recipe, with its own data and in its own loop.

    Arguments
    ---------
    settings : Settings
        The knobs.
    suffix : str
        Put into the names of files that runs with quantized layers write.
    """

    def __init__(self, settings: Settings, suffix: str):
        self.settings, self.suffix = settings, suffix
        self.data: tuple[Any, dict] = (None, {})
        self._statistics: dict = {}
        self._training: Optional[RecipeTraining] = None
        self._float_digest = ""

    @property
    def trains(self) -> bool:
        """Whether the method is one that trains."""
        return self.settings.method == "quantization_aware"

    @property
    def label(self) -> str:
        """A few words that name the quantization in logs."""
        if self.settings.plan is not None:
            return f"plan {Path(self.settings.plan).name}"
        return self.settings.label

    @contextlib.contextmanager
    def converting(self, brain, root: nn.ModuleDict) -> Iterator[Conversion]:
        """Convert layers while the block runs; afterwards all is as before.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        root : torch.nn.ModuleDict
            Its modules to quantize.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved(brain))
            if self.trains:
                stack.enter_context(unchanged(held_modules(brain)))
                # What conversion fuses depends on the number of threads.
                self._float_digest = weights_digest(root)
            yield stack.enter_context(Conversion(root))

    def train(
        self,
        brain,
        conversion: Conversion,
        fit: tuple[Callable, dict[str, Any]],
        folder: Path,
    ) -> None:
        """Train with quantized layers, where that is the method.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        conversion : Conversion
            Its modules, in float.
        fit : tuple
            The recipe's own ``fit`` and the arguments of its call.
        folder : Path
            Folder of the plugin's results.
        """
        self._training = RecipeTraining(self.settings, folder, brain)
        self._training.train(
            self._float_digest,
            conversion,
            lambda: self._search(brain, conversion, "", folder),
            fit,
            (self.suffix, self.label),
        )

    def make(
        self, brain, conversion: Conversion, keys: dict, folder: Path
    ) -> Planned:
        """Make a plan for the weights as they are now.

        With ``method: quantization_aware`` the values from training of what is
        not quantized are loaded as well.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        conversion : Conversion
            Its modules, in float.
        keys : dict
            ``min_key`` and ``max_key``, to choose what was trained by.
        folder : Path
            Folder of the plugin's results.
        """
        settings = self.settings
        if self.trains:
            if self._training is None:
                self._training = RecipeTraining(settings, folder, brain)
            return self._training.planned(self._float_digest, conversion, keys)
        if settings.plan is not None or not settings.needs_data:
            return make_plan(conversion, settings, None, None)
        digest = weights_digest(conversion.root)
        planned = self._search(brain, conversion, digest, folder)
        self._statistics = {digest: planned.statistics}
        return planned

    def _search(
        self, brain, conversion: Conversion, digest: str, folder: Path
    ) -> Planned:
        """Calibrate and search on the recipe's validation data."""
        settings = self.settings
        loader = validation_loader(brain, *self.data)
        progress = shows_progress(brain)
        seen, scored = (
            BatchSample(loader, count, settings.seed)
            for count in (
                settings.calibration_utterances,
                settings.search_utterances,
            )
        )
        guard = guarded(brain, self.suffix, self.label, folder)
        with guard, validation_stage(brain):
            conversion.root.eval()
            return make_plan(
                conversion,
                settings,
                lambda: calibrate(brain, seen, progress),
                BrainEvaluator(brain, scored, settings.objective),
                folder,
                progress,
                self._statistics.get(digest),
            )


def shows_progress(brain) -> bool:
    """Return whether this process shows progress bars."""
    return if_main_process() and not brain.noprogressbar
