"""Error rates by sorting: equal to SpeechBrain's, and weighted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.utils.metric_stats import EER, minDCF

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.verification import eer, min_dcf
from speechbrain_stablequant.metrics.verification.error_rates import (
    SortedTrials,
)

# Ties are the hard part, so most scores come from a coarse grid
SCORES = st.one_of(
    st.lists(st.integers(-3, 3), min_size=1, max_size=25),
    st.lists(st.integers(-40, 40), min_size=1, max_size=25),
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=25
    ),
)


def check_equal(positive, negative):
    positive = torch.as_tensor(positive).float()
    negative = torch.as_tensor(negative).float()
    assert eer(positive, negative) == EER(positive, negative)
    assert min_dcf(positive, negative) == pytest.approx(
        minDCF(positive, negative), abs=1e-9
    )


@settings(max_examples=300)
@given(SCORES, SCORES)
def test_rates_and_thresholds_are_speechbrain(positive, negative):
    check_equal(positive, negative)


@pytest.mark.parametrize("step", [0, 0.01, 0.25, 2])
@pytest.mark.parametrize("seed", range(6))
def test_rates_of_many_trials_are_speechbrain(seed, step):
    rng = np.random.default_rng(seed)
    positive = rng.normal(1, 1, rng.integers(1, 300))
    negative = rng.normal(0, 1, rng.integers(1, 300))
    if step:
        positive, negative = (
            np.round(s / step) * step for s in (positive, negative)
        )
    check_equal(positive, negative)


@pytest.mark.parametrize("costs", [(1, 1, 0.5), (10, 1, 0.01), (1, 3.5, 0.2)])
def test_other_costs_are_speechbrain(costs):
    rng = np.random.default_rng(3)
    positive = torch.tensor(rng.normal(1, 1, 80)).float()
    negative = torch.tensor(rng.normal(0, 1, 90)).float()
    assert min_dcf(positive, negative, *costs) == pytest.approx(
        minDCF(positive, negative, *costs)
    )


def test_double_precision_is_kept():
    positive = torch.tensor([0.5 + 1e-12, 0.7], dtype=torch.float64)
    negative = torch.tensor([0.5, 0.1], dtype=torch.float64)
    assert eer(positive, negative) == EER(positive, negative)
    assert eer(positive, negative)[0] == 0


@pytest.mark.parametrize("rate", [eer, min_dcf])
def test_impossible_scores_are_refused(rate):
    with pytest.raises(StableQuantError, match=r"no positive .* among 2"):
        rate([], [0.1, 0.2])
    with pytest.raises(StableQuantError, match="no negative"):
        rate([0.1], [])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(StableQuantError, match="1 of 3 .* not finite"):
            rate([0.1, bad], [0.3])


def test_misfitting_arrays_are_refused():
    with pytest.raises(StableQuantError, match="needs one of both"):
        SortedTrials([0.1, 0.2], [True])
    trials = SortedTrials([0.1, 0.2], [True, False])
    with pytest.raises(StableQuantError, match=r"expected \(trials, draws\)"):
        trials.eer(np.ones((3, 2)))


@given(st.integers(0, 10_000), st.sampled_from([1, 4, 100]))
def test_weights_are_replications(seed, grid):
    rng = np.random.default_rng(seed)
    count = rng.integers(2, 40)
    target = rng.random(count) < 0.5
    target[:2] = True, False
    scores = np.round(rng.normal(size=count) * grid).astype("f4")
    weights = rng.integers(0, 4, (count, 5))
    weights[:2] = np.maximum(weights[:2], 1)
    trials = SortedTrials(scores, target)
    for draw, rate, cost in zip(
        weights.T, trials.eer(weights), trials.min_dcf(weights)
    ):
        often, kind = np.repeat(scores, draw), np.repeat(target, draw)
        assert rate == eer(often[kind], often[~kind])[0]
        assert cost == min_dcf(often[kind], often[~kind])[0]


def test_weights_of_one_change_nothing():
    rng = np.random.default_rng(5)
    trials = SortedTrials(rng.normal(size=50), np.arange(50) % 2 == 0)
    ones = np.ones((50, 3))
    assert (trials.eer(ones) == trials.eer()).all()
    assert (trials.min_dcf(ones) == trials.min_dcf()).all()


def test_without_weight_there_is_no_rate():
    trials = SortedTrials([0.9, 0.1], [True, False])
    weights = np.array([[0, 1, 1], [1, 0, 1]])
    for rates in (trials.eer(weights), trials.min_dcf(weights)):
        assert np.isnan(rates).tolist() == [True, True, False]
