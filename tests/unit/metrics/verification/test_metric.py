"""Verification metrics over items, and their bootstrap over speakers."""

import copy
import math
import pickle

import numpy as np
import pytest

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.metric import (
    Interval,
    Item,
    Metric,
    RateInterval,
)
from speechbrain_stablequant.metrics.verification import (
    CosineBackend,
    Trials,
    VerificationMetric,
    eer,
    min_dcf,
)
from speechbrain_stablequant.metrics.verification.error_rates import (
    SortedTrials,
)
from speechbrain_stablequant.metrics.verification.metric import embedding_item
from tests.unit.metrics.verification.helpers import (
    all_trials,
    embeddings,
    items_of,
    metric_of,
    shaken,
)


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def split_scores(trials, vectors):
    scores = ([], [])
    for label, *pair in trials:
        first, second = (vectors[name[: -len(".wav")]] for name in pair)
        scores[label].append(cosine(first, second))
    return scores[1], scores[0]


def test_the_value_is_the_rate_over_all_trials():
    vectors = embeddings()
    trials = all_trials(vectors, stride=5)
    positive, negative = split_scores(trials, vectors)
    items = items_of(vectors)
    metric = metric_of(trials)
    assert isinstance(metric, Metric)
    assert metric.value(items) == pytest.approx(
        100 * eer(positive, negative)[0]
    )
    assert metric_of(trials, "minDCF").value(items) == pytest.approx(
        100 * min_dcf(positive, negative)[0]
    )


def test_the_value_is_over_complete_trials_in_any_order():
    vectors = embeddings()
    trials = all_trials(vectors, stride=5)
    some = dict(list(vectors.items())[:41])
    kept = [t for t in trials if {t[1][:-4], t[2][:-4]} <= some.keys()]
    metric = metric_of(trials)
    value = metric.value(items_of(some))
    assert value == metric_of(kept).value(reversed(items_of(some)))
    # Items as the journal keeps them, under the other form of their ids
    other = [Item(*[i.key.replace("/", "--"), *i[1:]]) for i in items_of(some)]
    assert metric.value(iter(other)) == value
    assert metric.value(items_of(some) * 2) == value


def test_without_both_kinds_of_trials_there_is_no_value():
    metric = metric_of([(1, "a/1", "a/2"), (0, "a/1", "b/1")])
    vectors = embeddings(speakers=1, utterances=3, dim=2)
    for names in ([], ["a/1"], ["a/1", "a/2"], ["a/1", "b/1"], ["z"] * 3):
        items = items_of(dict(zip(names, vectors.values())))
        assert math.isnan(metric.value(items))
        interval = metric.compare(items, items)
        assert math.isnan(interval.difference)
        assert math.isnan(interval.low)
        assert metric.interval(items).to_dict()["value"] is None


def test_damaged_items_are_refused():
    metric = metric_of([(1, "a/1", "a/2"), (0, "a/1", "b/1")])
    good = items_of({"a/1": [1, 0], "a/2": [1, 1]})
    with pytest.raises(StableQuantError, match="'b/1' has a damaged"):
        metric.value([*good, Item("b/1", 0.0, 1.0, "AAA")])
    with pytest.raises(StableQuantError, match="'b/1' .* of 0 values"):
        metric.value([*good, Item("b/1", 0.0, 1.0)])
    with pytest.raises(StableQuantError, match="'b/1' .* of 3 values"):
        metric.value([*good, embedding_item("b/1", [1, 2, 3])])


def test_a_system_that_broke_down_has_no_rate():
    metric = metric_of([(1, "a/1", "a/2"), (0, "a/1", "b/1")])
    good = items_of({"a/1": [1, 0], "a/2": [1, 1], "b/1": [0, 1]})
    bad = [*good[:2], embedding_item("b/1", [1, np.nan])]
    assert math.isnan(metric.value(bad))
    change = metric.compare(good, bad)
    assert math.isnan(change.difference)
    assert math.isnan(change.low)


def test_a_metric_is_a_value():
    trials = [(1, "a/1", "a/2"), (0, "a/1", "b/1")]
    metric = metric_of(trials)
    same = metric_of([(True, "a/1.wav", "a--2"), ("0", "a/1", "b/1")])
    assert metric == same
    assert hash(metric) == hash(same)
    assert len({metric, same, metric_of(trials, "minDCF")}) == 2
    assert metric != metric_of(trials[::-1])
    assert metric != Metric("EER")
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert copy.deepcopy(metric) == metric
    assert len(repr(metric)) < 250
    with pytest.raises(KnobError, match="Did you mean 'minDCF'"):
        VerificationMetric.of("mindcf", metric.backend)
    with pytest.raises(KnobError, match="needs a backend"):
        VerificationMetric()


def test_drawn_speakers_weigh_their_trials():
    vectors = embeddings(speakers=3, utterances=2)
    trials = Trials(all_trials(vectors))
    pairs = trials.complete(tuple(sorted(vectors)))
    drawn = np.array([[2.0, 1], [0, 1], [3, 1]])
    weights = pairs.weights(drawn)
    assert (weights[:, 1] == 1).all()
    names = [trials.ids[i][:4] for i in trials.enrol]
    others = [trials.ids[i][:4] for i in trials.test]
    often = {"s000": 2, "s001": 0, "s002": 3}
    assert weights[:, 0].tolist() == [
        often[a] if a == b else often[a] * often[b]
        for a, b in zip(names, others)
    ]


@pytest.mark.parametrize("rate", ["EER", "minDCF"])
def test_the_same_system_twice_does_not_differ(rate):
    vectors = embeddings()
    metric = metric_of(all_trials(vectors, stride=7), rate)
    items = items_of(vectors)
    assert metric.compare(items, items[::-1], samples=50) == Interval(
        0.0, 0.0, 0.0
    )


def test_a_worse_system_differs_the_same_each_time():
    vectors = embeddings(speakers=30)
    metric = metric_of(all_trials(vectors, stride=7))
    before, after = items_of(vectors), items_of(shaken(vectors, 1.5))
    interval = metric.compare(before, after, samples=300)
    assert interval.difference == metric.value(after) - metric.value(before)
    assert 0 < interval.low < interval.difference < interval.high
    assert interval == metric.compare(before, after, samples=300)
    other = metric.compare(before, after, samples=300, seed=1)
    assert interval.low != other.low
    assert interval.difference == other.difference
    narrow = metric.compare(before, after, confidence=0.5, samples=300)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_pieces_of_the_bootstrap_do_not_show(monkeypatch):
    vectors = embeddings(speakers=8)
    metric = metric_of(all_trials(vectors, stride=3))
    before, after = items_of(vectors), items_of(shaken(vectors, 1.0))
    whole = metric.compare(before, after, samples=40)
    monkeypatch.setattr(
        "speechbrain_stablequant.metrics.verification.metric._ELEMENTS", 1
    )
    assert metric.compare(before, after, samples=40) == whole


def test_systems_on_other_utterances_are_not_compared():
    vectors = embeddings(speakers=4)
    metric = metric_of(all_trials(vectors))
    items = items_of(vectors)
    with pytest.raises(StableQuantError, match=r"\(16 and 15\)"):
        metric.compare(items, items[1:])


def test_one_speaker_cannot_be_resampled():
    metric = metric_of([(1, "a/1", "a/2"), (0, "a/1", "a/3")])
    items = items_of({"a/1": [1, 0], "a/2": [1, 0.1], "a/3": [0, 1]})
    assert metric.value(items) == 0
    assert math.isnan(metric.compare(items, items).low)
    assert str(metric.interval(items)) == "0.00"


def test_an_interval_is_written_behind_its_value():
    assert str(RateInterval(2.346, 1.9, 2.8)) == "2.35 [1.90, 2.80]"


def test_speakers_may_be_named_otherwise():
    rows = [(1, "a/1", "a/2"), (0, "a/1", "b/1")]
    trials = Trials(rows, speaker=lambda name: "everybody")
    metric = VerificationMetric.of("EER", CosineBackend(trials))
    items = items_of({"a/1": [1, 0], "a/2": [1, 0.1], "b/1": [0, 1]})
    assert math.isnan(metric.interval(items).low)
    assert not math.isnan(metric_of(rows).interval(items).low)


def test_errors_of_a_few_speakers_widen_the_interval():
    vectors = embeddings(speakers=30, utterances=6, uneven=True)
    trials = Trials(all_trials(vectors, stride=9))
    metric = VerificationMetric.of("EER", CosineBackend(trials))
    interval = metric.interval(items_of(vectors), samples=400)
    keys = tuple(sorted(vectors))
    pairs, scores = metric.backend.score(
        keys, np.stack([vectors[key] for key in keys])
    )
    count = len(scores)
    weights = np.random.default_rng(0).multinomial(
        count, np.full(count, 1 / count), size=400
    )
    rates = 100 * SortedTrials(scores, pairs.target).eer(weights.T)
    low, high = np.quantile(rates, [0.025, 0.975])
    assert interval.high - interval.low > 2 * (high - low)


def test_intervals_cover_the_rate_of_the_population():
    def draw(seed, speakers=40):
        vectors = embeddings(speakers, 5, seed=seed, uneven=True)
        trials = all_trials(vectors, stride=11)
        return metric_of(trials), items_of(vectors)

    metric, items = draw(10_000, speakers=400)
    truth = metric.value(items)
    covered = 0
    for seed in range(60):
        metric, items = draw(seed)
        interval = metric.interval(items, confidence=0.9, samples=200)
        covered += interval.low <= truth <= interval.high
    # 54 expected; the percentile bootstrap of few speakers falls a bit short
    assert 46 <= covered <= 60
