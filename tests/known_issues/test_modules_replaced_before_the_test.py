"""A recipe replaced a module when its test began: the float one was scored.

The block had looked the modules up before the float pass. It then quantized
the old module, which nobody called any more, and reported the scores of the
new one as those of the quantized model.
"""

import speechbrain as sb
import torch
from torch import nn

from speechbrain_stablequant import (
    PostTrainingQuantizationMixin,
    PostTrainingQuantizer,
)


class ReplacesItsModule(PostTrainingQuantizationMixin, sb.Brain):
    """Loads another model for the test, as recipes with averages do."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        self.modules["layer"] = nn.Linear(8, 8)

    def compute_forward(self, batch, stage):
        self.called.append(type(self.modules.layer).__name__)
        return self.modules.layer(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()


def test_the_module_of_the_test_is_quantized(tmp_path):
    block = PostTrainingQuantizer(method="uniform", bits="W2", plots=False)
    hparams = {"ptq": block, "output_folder": str(tmp_path)}
    brain = ReplacesItsModule({"layer": nn.Linear(8, 8)}, hparams=hparams)
    brain.called = []
    batches = [torch.randn(4, 8) for _ in range(3)]
    brain.evaluate(batches, progressbar=False)
    assert brain.called == ["Linear"] * 3 + ["QuantizedLinear"] * 3
    loss = block.report.to_dict()["tests"][0]["metrics"]["loss"]
    assert loss["quantized"] != loss["float"]
