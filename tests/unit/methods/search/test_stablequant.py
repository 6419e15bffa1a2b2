"""StableQuant on a model whose best cut-off lies below the usual grid."""

import pytest
import torch
from torch import nn

from speechbrain_stablequant import quantize
from speechbrain_stablequant.errors import KnobError


@pytest.fixture
def outlier_model():
    """A layer with large inputs in 2 of 32 features, which its weights ignore."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8))
    batch = torch.randn(64, 32)
    batch[:, :2] *= 10
    with torch.no_grad():
        model[0].weight[:, :2] = 0
        expected = model(batch)

    def score(candidate):
        error = candidate(batch) - expected
        return 100 * float(error.norm() / expected.norm())

    return model, batch, score


def test_the_grid_goes_on_while_its_lowest_cut_is_the_best(outlier_model):
    model, batch, score = outlier_model
    knobs = {"score": score, "bits": "W8A4", "progress": False}
    at_98 = quantize(
        model,
        [batch],
        method="uniform",
        observer="percentile",
        percentile=98,
        **knobs,
    )
    at_98.restore()
    result = quantize(model, [batch], percentiles=[100, 99, 98], **knobs)
    assert result.search["flagged"] == ["0"]
    found = result.search["percentiles"]["0"]
    assert found["chosen"] <= 95  # 6.25 % of the values are outliers
    assert {100.0, 98.0, 97.0, 95.0} < set(found["tried"])
    assert result.metrics["quantized"] < 20 < at_98.metrics["quantized"]


def test_scales_by_entropy_are_another_plan(outlier_model):
    model, batch, score = outlier_model
    plans = {}
    for observer in ("mse", "entropy"):
        result = quantize(
            model,
            [batch],
            score=score,
            bits="W8A4",
            observer=observer,
            progress=False,
        )
        chosen = result.plan.layers["0"].inputs["input"]
        assert chosen.observer == observer
        plans[observer] = chosen.high
        result.restore()
    assert plans["mse"] != plans["entropy"]


@pytest.mark.parametrize("observer", ["max", "percentile"])
def test_stablequant_refuses_other_observers(outlier_model, observer):
    model, batch, score = outlier_model
    with pytest.raises(KnobError, match="method: uniform"):
        quantize(model, [batch], score=score, observer=observer)
    assert type(model[0]) is nn.Linear
