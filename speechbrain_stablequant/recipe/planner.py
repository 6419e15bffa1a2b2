"""The plan for what a Brain holds: searched, trained, given or remembered."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.layers import Conversion
from speechbrain_stablequant.layers.snapshot import unchanged
from speechbrain_stablequant.methods.pipeline import Planned, make_plan
from speechbrain_stablequant.methods.search import weights_digest
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.recipe.checkpoint_selection import held_modules
from speechbrain_stablequant.recipe.evaluator import BrainEvaluator
from speechbrain_stablequant.recipe.isolation import isolated, preserved
from speechbrain_stablequant.recipe.run import RecipeRun
from speechbrain_stablequant.recipe.training import RecipeTraining
from speechbrain_stablequant.recipe.validation import (
    BatchSample,
    calibrate,
    validation_loader,
    validation_stage,
)

__all__ = ["Planner"]

logger = get_logger(__name__)


class Planner:
    """Makes plans for a recipe, with its own data and in its own loop.

    Arguments
    ---------
    settings : Settings
        The options.

    Attributes
    ----------
    data : tuple
        The recipe's validation data, and the arguments of its loader.
    last : tuple, optional
        Digest of the weights that were planned for last, and their plan.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.data: tuple[Any, dict] = (None, {})
        self._statistics: dict = {}
        self._training: Optional[RecipeTraining] = None
        self._float_digest = ""
        self.last: Optional[tuple[str, Planned]] = None

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
    def converting(self, run: RecipeRun) -> Iterator[Conversion]:
        """Convert layers while the block runs; afterwards all is as before.

        Arguments
        ---------
        run : RecipeRun
            The run of the recipe.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved(run.brain))
            if self.trains:
                stack.enter_context(unchanged(held_modules(run.brain)))
                # What conversion fuses depends on the number of threads.
                self._float_digest = weights_digest(run.root)
            yield stack.enter_context(Conversion(run.root))

    def train(
        self,
        run: RecipeRun,
        conversion: Conversion,
        fit: tuple[Callable, dict[str, Any]],
    ) -> None:
        """Train with quantized layers, where that is the method.

        Arguments
        ---------
        run : RecipeRun
            The run of the recipe.
        conversion : Conversion
            Its modules, in float.
        fit : tuple
            The recipe's own ``fit`` and the arguments of its call.
        """
        self._training = RecipeTraining(self.settings, run)
        self._training.train(
            self._float_digest,
            conversion,
            lambda: self._search(run, conversion, ""),
            fit,
        )

    def plan_for(
        self, run: RecipeRun, conversion: Conversion, keys: dict
    ) -> tuple[Planned, bool]:
        """Return the plan for the weights as they are now.

        The same weights get the same plan, without another search. With
        ``method: quantization_aware`` the values from training of what is not
        quantized are loaded as well.

        Arguments
        ---------
        run : RecipeRun
            The run of the recipe.
        conversion : Conversion
            Its modules, in float.
        keys : dict
            ``min_key`` and ``max_key``, to choose what was trained by.

        Returns
        -------
        planned : Planned
            The plan, what it covers and how it was found.
        is_new : bool
            Whether it is another than that of the call before.
        """
        digest = weights_digest(conversion.root)
        known = None
        if self.last is not None and self.last[0] == digest:
            known = self.last[1]
        if known is not None and not self.trains:
            return known, False
        planned = self._make(run, conversion, keys, digest)
        if known is not None and known.search == planned.search:
            return known, False  # trained; its other values are loaded again
        if planned.unreached:
            logger.warning(
                "Validation never reaches %d layers; their inputs stay float: "
                "%s. Where they belong to one of several domains, validate "
                "with all of them: set_domain takes a list, one for each "
                "utterance.",
                len(planned.unreached),
                ", ".join(planned.unreached[:5]),
            )
        self.last = (digest, planned)
        return planned, True

    def _make(
        self, run: RecipeRun, conversion: Conversion, keys: dict, digest: str
    ) -> Planned:
        """Make a plan: from training, from a file, or by a search."""
        settings = self.settings
        if self.trains:
            if self._training is None:
                self._training = RecipeTraining(settings, run)
            return self._training.planned(self._float_digest, conversion, keys)
        if settings.plan is not None or not settings.needs_data:
            return make_plan(conversion, settings, None, None)
        planned = self._search(run, conversion, digest)
        self._statistics = {digest: planned.statistics}
        return planned

    def _search(
        self, run: RecipeRun, conversion: Conversion, digest: str
    ) -> Planned:
        """Calibrate and search on the recipe's validation data."""
        settings = self.settings
        loader = validation_loader(run.brain, *self.data)
        seen, scored = (
            BatchSample(loader, count, settings.seed)
            for count in (
                settings.calibration_utterances,
                settings.search_utterances,
            )
        )
        with isolated(run), validation_stage(run.brain):
            conversion.root.eval()
            return make_plan(
                conversion,
                settings,
                lambda: calibrate(run.brain, seen, run.shows_progress),
                BrainEvaluator(run.brain, scored, settings.objective),
                run.folder,
                run.shows_progress,
                self._statistics.get(digest),
            )
