"""What a search method gets to work with, and what it gives back."""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.layers import Conversion, kind_of
from speechbrain_stablequant.methods.calibration import Statistics, choose_input
from speechbrain_stablequant.methods.search.journal import Journal
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.metrics.evaluator import Evaluator

__all__ = ["SearchContext", "SearchResult"]


@dataclass
class SearchContext:
    """The inputs of a search.

    Arguments
    ---------
    conversion : Conversion
        The prepared float model.
    layers : list of str
        Layers to quantize.
    blocks : dict
        Layer names by block.
    statistics : dict
        What calibration saw.
    settings : Settings
        The options.
    evaluator : Evaluator, optional
        Scores the model; None when there is no metric.
    journal : Journal
        Results so far.
    progress : bool
        Whether to show a progress bar.
    """

    conversion: Conversion
    layers: list[str]
    blocks: dict[str, list[str]]
    statistics: Statistics
    settings: Settings
    evaluator: Optional[Evaluator]
    journal: Journal
    progress: bool = True

    def layer_plan(
        self,
        name: str,
        observer: Optional[str] = None,
        percentile: Optional[float] = None,
        block: Optional[str] = None,
        widths: Optional[tuple[int, int]] = None,
    ) -> LayerPlan:
        """Return the plan of a layer; by default as the settings say.

        Arguments
        ---------
        name : str
            The layer.
        observer : str, optional
            Rule for the ranges of its inputs.
        percentile : float, optional
            Where their histograms are cut first; by default nowhere, unless
            the observer of the settings is ``percentile``.
        block : str, optional
            Block of the search that the layer belongs to.
        widths : tuple of int, optional
            Bit widths of weights and activations.
        """
        settings = self.settings
        observer = observer or settings.observer
        if percentile is None:
            given = observer == settings.observer == "percentile"
            percentile = settings.percentile if given else 100.0
        weight_bits, activation_bits = widths or settings.bit_widths(name)
        inputs = {}
        if activation_bits != 32:
            for slot, histogram in self.statistics.get(name, {}).items():
                scheme = settings.activation_scheme(
                    activation_bits, histogram.minimum
                )
                try:
                    inputs[slot] = choose_input(
                        histogram, scheme, observer, percentile, settings.tail
                    )
                except StableQuantError as err:
                    raise type(err)(f"Layer '{name}': {err}") from None
        return LayerPlan(
            weight=settings.weight_scheme(weight_bits),
            kind=kind_of(self.conversion.layer(name)),
            unit=block or self.block_of(name),
            weight_observer=settings.weight_observer,
            inputs=inputs,
        )

    @property
    def subset(self) -> list[int]:
        """The batches that candidates are scored on first."""
        share = self.evaluator.num_batches * self.settings.subset
        return list(range(max(1, math.ceil(share))))

    def block_of(self, layer: str) -> str:
        """Return the block that a layer belongs to."""
        return next(b for b, names in self.blocks.items() if layer in names)


@dataclass
class SearchResult:
    """What a search method gives back.

    Arguments
    ---------
    plan : QuantizationPlan
        The plan.
    report : dict
        Plain data about how it was found, for ``report.json``.
    """

    plan: QuantizationPlan
    report: dict[str, Any] = field(default_factory=dict)
