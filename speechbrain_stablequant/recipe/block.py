"""What a Brain with the mixin asks of the block in its hparams."""

import abc
from collections.abc import Iterable
from typing import Any, Callable

__all__ = ["RecipeBlock"]


class RecipeBlock(abc.ABC):
    """A block of the hparams that takes part in ``fit`` and ``evaluate``.

    `PostTrainingQuantizationMixin` looks for one among the hparams by this
    class, and needs to know nothing of what it does.
    """

    @abc.abstractmethod
    def remember_data(self, valid_set, loader_kwargs: dict) -> None:
        """Remember the recipe's validation data for calibration."""

    @abc.abstractmethod
    def after_fit(
        self,
        brain,
        keys: Iterable[tuple[str, str]],
        fit: tuple[Callable, dict[str, Any]],
    ) -> None:
        """Do what follows ``fit``.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        keys : iterable of (str, str)
            By what the recipe keeps checkpoints, see
            `speechbrain_stablequant.recipe.checkpoint_selection.noted_keys`.
        fit : tuple
            The recipe's own ``fit`` and the arguments of its call.
        """

    @abc.abstractmethod
    def evaluate(
        self, brain, evaluate: Callable[[], float], keys: dict
    ) -> float:
        """Run the recipe's test pass, and what belongs to it.

        Arguments
        ---------
        brain : speechbrain.Brain
            The Brain.
        evaluate : callable
            The recipe's own ``evaluate`` with its arguments.
        keys : dict
            ``max_key`` and ``min_key`` of the call.

        Returns
        -------
        float
            The average test loss that the recipe expects.
        """
