"""Metrics as sums over items, and their bootstrap."""

import math

import pytest
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.metric import Item, Metric, items_of


def items(errors, weight=10):
    return [Item(str(i), e, weight) for i, e in enumerate(errors)]


def test_a_metric_weighs_its_items():
    mixed = [Item("a", 1, 1), Item("b", 0, 9)]
    assert Metric("WER").value(mixed) == 10
    assert Metric("loss", factor=1).value(mixed) == 0.1
    assert math.isnan(Metric().value([]))


def test_error_rates_are_speechbrain():
    stats = ErrorRateStats()
    stats.append(
        ["u1", "u2", "u3"],
        [["a", "b"], ["c"], []],
        [["a", "x", "y"], ["c"], ["d", "e"]],
    )
    found = Metric("WER").value(items_of(stats))
    assert found == pytest.approx(stats.summarize("error_rate"))
    assert [item.key for item in items_of(stats)] == ["u1", "u2", "u3"]


def test_the_same_system_twice_does_not_differ():
    interval = Metric().compare(items([1, 2, 3]), items([1, 2, 3]))
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0)


def test_a_constant_change_has_no_spread():
    interval = Metric().compare(items([1] * 9), items([3] * 9))
    assert interval.difference == pytest.approx(20)
    assert interval.low == pytest.approx(20)
    assert interval.high == pytest.approx(20)


def test_the_interval_covers_the_change_and_shrinks_with_confidence():
    before, after = items([0] * 40), items([i % 2 for i in range(40)])
    wide = Metric().compare(before, after[::-1], 0.99)
    narrow = Metric().compare(before, after, 0.8)
    assert wide.low <= narrow.low <= 5 <= narrow.high <= wide.high
    assert wide.low < narrow.low
    again = Metric().compare(before, after, 0.8)
    assert again == narrow
    # Standard error of a mean of 40 coin flips: 0.079, so 0.79 points.
    assert narrow.high - narrow.low == pytest.approx(2 * 1.28 * 0.79, rel=0.2)


def test_one_item_has_a_change_but_no_interval():
    interval = Metric().compare(items([1]), items([2]))
    assert interval.difference == 10
    assert math.isnan(interval.low)
    assert interval.to_dict()["high"] is None
    assert str(interval) == "+10.00"


def test_other_utterances_are_refused():
    with pytest.raises(StableQuantError, match="2 and 3"):
        Metric().compare(items([1, 2]), items([1, 2, 3]))


def test_one_system_has_an_interval_of_its_own():
    found = Metric("WER").interval(items([0, 2] * 50))
    assert found.value == Metric("WER").value(items([0, 2] * 50)) == 10
    assert 6 < found.low < 10 < found.high < 14
    assert str(Metric("WER").interval(items([1] * 9))) == "10.00 [10.00, 10.00]"
