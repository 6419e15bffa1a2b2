"""Run batches through a model and watch what enters its layers."""

import contextlib
from collections.abc import Iterable

from torch import nn

from speechbrain_stablequant.errors import CalibrationError
from speechbrain_stablequant.layers import QuantizedModule
from speechbrain_stablequant.methods.calibration.histogram import (
    ActivationHistogram,
)

__all__ = ["ActivationCollector", "Statistics"]

Statistics = dict[str, dict[str, ActivationHistogram]]


class ActivationCollector:
    """Collect a histogram of each input of each layer while active.

    Arguments
    ---------
    layers : iterable of (str, torch.nn.Module, type)
        Name, float layer and quantized class, as `quantizable_layers` yields.

    Example
    -------
    >>> import torch
    >>> from speechbrain_stablequant.layers import quantizable_layers
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> with ActivationCollector(quantizable_layers(model)) as collector:
    ...     _ = model(torch.ones(3, 4))
    >>> collector.statistics["0"]["input"].count
    12
    """

    def __init__(
        self, layers: Iterable[tuple[str, nn.Module, QuantizedModule]]
    ):
        self._layers = [entry for entry in layers if entry[2].input_names]
        self.statistics: Statistics = {name: {} for name, _, _ in self._layers}
        self._hooks = contextlib.ExitStack()
        # Query, key and value projections often see the very same tensor.
        self._last = (None, None)

    def __enter__(self) -> "ActivationCollector":
        for name, module, quantized in self._layers:
            hook = self._hook(name, quantized)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._hooks.enter_context(handle)
        return self

    def __exit__(self, *exc_info) -> None:
        self._hooks.close()
        self._last = (None, None)

    @property
    def unseen(self) -> list[str]:
        """Names of the layers that no input reached."""
        return [name for name, inputs in self.statistics.items() if not inputs]

    def _hook(self, layer: str, quantized: QuantizedModule):
        def observe(module, args, kwargs):
            for name, x in quantized.bind_inputs(args, kwargs).items():
                try:
                    seen = self._histogram(x)
                except CalibrationError as err:
                    raise CalibrationError(
                        f"Layer '{layer}', input '{name}': {err}"
                    ) from None
                mine = self.statistics[layer]
                mine.setdefault(name, ActivationHistogram()).merge(seen)

        return observe

    def _histogram(self, x):
        last, histogram = self._last
        if last is not x:
            histogram = ActivationHistogram()
            histogram.observe(x)
            self._last = (x, histogram)
        return histogram

    def merge(self, others: Iterable[Statistics]) -> None:
        """Add what other processes have seen."""
        for other in others:
            for layer, inputs in other.items():
                for name, histogram in inputs.items():
                    mine = self.statistics[layer]
                    mine.setdefault(name, ActivationHistogram()).merge(
                        histogram
                    )
