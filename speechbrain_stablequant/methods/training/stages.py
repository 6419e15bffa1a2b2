"""The layers of a plan in training, and the bit widths they pass through."""

import dataclasses

from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.layers import Conversion, LayerWeights
from speechbrain_stablequant.methods.settings import Settings
from speechbrain_stablequant.methods.training.layers import (
    make_trainable,
    set_weight_scheme,
    trainable_layers,
    trained_inputs,
    trained_weights,
)

__all__ = ["Stages"]


class Stages:
    """Turns layers into layers in training and lowers their bits.

    Arguments
    ---------
    conversion : Conversion
        The modules, in float.
    plan : QuantizationPlan
        Bit widths to end with, and ranges of inputs to start from. Layers whose
        weights are 16-bit floats in it are not trained.
    settings : Settings
        The options.
    """

    def __init__(
        self,
        conversion: Conversion,
        plan: QuantizationPlan,
        settings: Settings,
    ):
        self.conversion, self.plan = conversion, plan
        self.settings = settings
        self.layers = {
            name: layer
            for name, layer in plan.layers.items()
            if not layer.weight.is_float
        }
        options = settings.training_settings
        found = {
            name: options.bit_widths(layer.weight.bits)
            for name, layer in self.layers.items()
        }
        self.count = max(map(len, found.values()), default=1)
        # Layers with fewer stages keep their first bit width until the others
        # have come down to it, so that all layers end together.
        self.bit_widths = {
            name: [widths[0]] * (self.count - len(widths)) + widths
            for name, widths in found.items()
        }
        self.current = 0

    @property
    def last(self) -> int:
        """The stage at which all layers have the bit widths of the plan."""
        return self.count - 1

    def prepare(self) -> None:
        """Turn the layers of the plan into layers in training."""
        for name, layer in self.layers.items():
            self.conversion.set(name, layer)
        for name in self.layers:
            make_trainable(self.conversion.layer(name), self._at(name, 0))
        self.current = 0

    def _at(self, name: str, stage: int) -> LayerPlan:
        """Return the plan of a layer at a stage."""
        plan, bits = self.layers[name], self.bit_widths[name][stage]
        if bits == plan.weight.bits:
            return plan
        scheme = self.settings.weight_scheme(bits)
        return dataclasses.replace(plan, weight=scheme)

    def enter(self, stage: int, keep_steps: bool = False) -> None:
        """Set the bit widths of a stage.

        Arguments
        ---------
        stage : int
            0 to `last`.
        keep_steps : bool
            Whether the step sizes are those of this stage already, from a
            checkpoint; otherwise they start anew.
        """
        for name in self.layers:
            before, after = self._at(name, self.current), self._at(name, stage)
            if before.weight != after.weight:
                layer = self.conversion.layer(name)
                set_weight_scheme(layer, after, keep_steps)
        self.current = stage

    def bits(self) -> list[int]:
        """Return the bit widths of weights that are in use now."""
        return sorted({w[self.current] for w in self.bit_widths.values()})

    def num_learning(self) -> int:
        """Return how many layers have something to learn."""
        return sum(
            any(p.requires_grad for p in layer.parameters(recurse=False))
            for layer in trainable_layers(self.conversion.root).values()
        )

    def result(self) -> tuple[QuantizationPlan, LayerWeights]:
        """Return plan and integers of the layers as they are now."""
        layers, weights = dict(self.plan.layers), {}
        for name, plan in self.layers.items():
            layer = self.conversion.layer(name)
            weights[name] = trained_weights(layer)
            layers[name] = dataclasses.replace(
                plan, inputs=trained_inputs(layer, plan), rounding="trained"
            )
        return dataclasses.replace(self.plan, layers=layers), weights
