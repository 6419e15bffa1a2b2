"""Perplexity over tokens: against sums by hand, and what intervals mean."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.errors import KnobError, StableQuantError
from speechbrain_stablequant.metrics.metric import Item
from speechbrain_stablequant.metrics.perplexity import (
    PerplexityMetric,
    PerplexityStats,
)

VOCAB = 11


def sentences(lengths, seed=0, scale=1.0):
    """Return log-probabilities and targets, filled up with zeros."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths)
    logits = scale * torch.randn(*shape, VOCAB, generator=generator)
    targets = torch.randint(1, VOCAB, shape, generator=generator)
    for row, length in enumerate(lengths):
        targets[row, length:] = 0
    return logits.log_softmax(-1), targets


def append(stats, lengths, seed=0, scale=1.0, texts=None):
    log_probs, targets = sentences(lengths, seed, scale)
    ids = [f"{seed}-{row}" for row in range(len(lengths))]
    relative = torch.tensor(lengths) / max(lengths)
    texts = texts or ["x" * length for length in lengths]
    stats.append(ids, log_probs, targets, texts, relative)
    return log_probs, targets


# -- the numbers ------------------------------------------------------------------


@given(
    st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_every_token_weighs_the_same(batches):
    stats, nats, tokens = PerplexityStats(), 0.0, 0
    for seed, lengths in enumerate(batches):
        log_probs, targets = append(stats, lengths, seed)
        for row, length in enumerate(lengths):
            for time in range(length):
                nats -= float(log_probs[row, time, targets[row, time]])
                tokens += 1
    found = stats.summarize()
    assert found["tokens"] == tokens
    assert found["characters"] == sum(n + 1 for b in batches for n in b)
    assert found["loss"] == pytest.approx(nats / tokens)
    assert found["PPL"] == pytest.approx(math.exp(nats / tokens))
    bits = nats / math.log(2) / found["characters"]
    assert found["BPC"] == pytest.approx(bits)


def test_it_does_not_depend_on_batches():
    lengths = [3, 9, 1, 5]
    log_probs, targets = sentences(lengths)
    texts = ["x" * length for length in lengths]
    one, each = PerplexityStats(), PerplexityStats()
    relative = torch.tensor(lengths) / 9
    one.append(list("abcd"), log_probs, targets, texts, relative)
    for row, length in enumerate(lengths):
        part = slice(row, row + 1), slice(0, length)
        each.append(["abcd"[row]], log_probs[part], targets[part], [texts[row]])
    assert each.summarize() == pytest.approx(one.summarize())


@pytest.mark.parametrize("value", [-math.inf, math.nan, 1e30])
def test_padding_does_not_count_whatever_it_is(value):
    lengths = [2, 6]
    log_probs, targets = sentences(lengths)
    expected, found = PerplexityStats(), PerplexityStats()
    relative = torch.tensor(lengths) / 6
    texts = ["ab", "abcdef"]
    expected.append(["a", "b"], log_probs, targets, texts, relative)
    log_probs[0, 2:] = value
    found.append(["a", "b"], log_probs, targets, texts, relative)
    assert found.summarize() == expected.summarize()


def test_an_impossible_token_is_infinitely_surprising():
    log_probs, targets = sentences([3])
    log_probs[0, 1, targets[0, 1]] = -math.inf
    stats = PerplexityStats()
    stats.append(["a"], log_probs, targets, ["abc"])
    found = stats.summarize()
    assert found["PPL"] == found["BPC"] == found["loss"] == math.inf
    metric, items = stats.quantization_metrics()["PPL"]
    assert metric.value(items) == math.inf


def test_perplexity_that_no_float_holds():
    log_probs = torch.full((1, 2, 3), -1e6)
    stats = PerplexityStats()
    stats.append(["a"], log_probs, torch.ones(1, 2).long(), ["ab"])
    assert stats.summarize("PPL") == math.inf
    assert stats.summarize("loss") == 1e6


def test_half_precision_is_added_up_in_full():
    time = 4000
    log_probs = torch.full((1, time, 2), -0.5, dtype=torch.bfloat16)
    stats = PerplexityStats()
    stats.append(["a"], log_probs, torch.ones(1, time).long(), ["x"])
    assert stats.summarize("loss") == 0.5


@given(st.integers(1, 6), st.integers(1, 6))
def test_bits_per_character_do_not_depend_on_the_tokenizer(pieces, factor):
    """The same probability of the same text, in few tokens or in many."""
    text = "y" * (pieces * factor)
    nats = 1.7 * len(text)
    found = []
    for tokens in (pieces, pieces * factor):
        log_probs = torch.full((1, tokens, VOCAB), -nats / tokens)
        stats = PerplexityStats()
        targets = torch.ones(1, tokens).long()
        stats.append(["a"], log_probs, targets, [text])
        found.append(stats.summarize())
    assert found[0]["BPC"] == pytest.approx(found[1]["BPC"])
    assert found[0]["PPL"] == pytest.approx(found[1]["PPL"] ** factor)


# -- what goes wrong -----------------------------------------------------------------


def test_nothing_was_appended():
    stats = PerplexityStats()
    with pytest.raises(StableQuantError, match="No sentence"):
        stats.summarize()
    with pytest.raises(StableQuantError, match="No sentence"):
        stats.write_stats(io.StringIO())
    metric, items = stats.quantization_metrics()["PPL"]
    assert items == []
    assert math.isnan(metric.value(items))
    append(stats, [3])
    stats.clear()
    assert stats.quantization_metrics()["BPC"][1] == []


def test_shapes_that_do_not_fit():
    log_probs, targets = sentences([3, 5])
    stats = PerplexityStats()
    for call in (
        (["a", "b"], log_probs[:, :4], targets, ["x", "y"]),
        (["a", "b"], log_probs[:1], targets, ["x", "y"]),
        (["a"], log_probs, targets, ["x"]),
        (["a", "b"], log_probs, targets[0], ["x", "y"]),
    ):
        with pytest.raises(StableQuantError, match=r"\(batch, time\)"):
            stats.append(*call)
    with pytest.raises(StableQuantError, match="1 texts for 2 sentences"):
        stats.append(["a", "b"], log_probs, targets, ["x"])
    assert stats.ids == stats.scores == stats.tokens == []


def test_unknown_statistic():
    stats = PerplexityStats()
    append(stats, [3])
    with pytest.raises(KnobError, match="Did you mean 'PPL'"):
        stats.summarize("PLP")


def test_written_to_a_file(capsys):
    stats, file = PerplexityStats(), io.StringIO()
    append(stats, [3, 5])
    stats.write_stats(file, verbose=True)
    text = file.getvalue()
    assert f"{stats.summarize('PPL'):.4f} over 8 tokens" in text
    assert f"{stats.summarize('BPC'):.4f} over 10 characters" in text
    assert text in capsys.readouterr().out


# -- intervals ---------------------------------------------------------------------------


def systems(change, count=60, noise=0.05, seed=0):
    """Return items of two systems; the second has ``change`` more nats."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 30, (count,), generator=generator)
    hard = 2 + torch.rand(count, generator=generator)
    wobble = noise * torch.randn(count, generator=generator)
    first, second = hard * tokens, (hard + wobble + change) * tokens
    return [
        [
            Item(f"{i:03d}", float(e), int(n))
            for i, (e, n) in enumerate(zip(s, tokens))
        ]
        for s in (first, second)
    ]


def test_value_is_that_of_the_statistics():
    stats = PerplexityStats()
    append(stats, [3, 8, 5])
    for name, (metric, items) in stats.quantization_metrics().items():
        assert metric.name == name
        assert metric.value(items) == pytest.approx(stats.summarize(name))
        assert [item.key for item in items] == ["0-0", "0-1", "0-2"]


@given(st.floats(-0.5, 0.5), st.integers(0, 20))
def test_change_is_inside_its_interval(change, seed):
    metric = PerplexityMetric()
    before, after = systems(change, seed=seed)
    found = metric.compare(before, after, samples=300)
    difference = metric.value(after) - metric.value(before)
    assert found.difference == pytest.approx(difference)
    assert found.low <= found.difference <= found.high
    assert found.low < found.high


def test_the_same_system_twice():
    before, _ = systems(0.0)
    found = PerplexityMetric().compare(before, before)
    assert (found.low, found.difference, found.high) == (0, 0, 0)


def test_a_change_is_much_surer_than_a_level():
    """Sentences differ a lot, two systems on the same sentence hardly."""
    metric = PerplexityMetric()
    before, after = systems(0.02, noise=0.01)
    change = metric.compare(before, after)
    level = metric.interval(before)
    assert change.low > 0
    assert level.low < level.value < level.high
    assert level.value == pytest.approx(metric.value(before))
    assert change.high - change.low < 0.2 * (level.high - level.low)


def test_intervals_hold_what_they_promise():
    """The true change is inside about nine times of ten."""
    metric, inside = PerplexityMetric(), 0
    for seed in range(100):
        before, after = systems(0.1, noise=0.2, seed=seed)
        found = metric.compare(before, after, confidence=0.9, samples=200)
        truth = metric.value(before) * (math.exp(0.1) - 1)
        inside += found.low <= truth <= found.high
    assert 80 <= inside <= 97


def test_more_sentences_make_it_surer():
    widths = []
    for count in (20, 500):
        found = PerplexityMetric().interval(systems(0.0, count)[0])
        widths.append(found.high - found.low)
    assert widths[1] < 0.5 * widths[0]


def test_one_sentence_has_no_interval():
    before, after = systems(0.1, count=1)
    metric = PerplexityMetric()
    found = metric.compare(before, after)
    assert found.to_dict()["low"] is None
    assert str(found) == f"{found.difference:+.2f}"
    assert metric.interval(before).to_dict()["high"] is None


def test_systems_on_different_sentences():
    before, after = systems(0.1)
    with pytest.raises(StableQuantError, match="same utterances"):
        PerplexityMetric().compare(before, after[1:])


def test_a_worse_start_that_is_infinite():
    before, after = systems(0.1)
    worse = [item._replace(errors=math.inf) for item in after]
    found = PerplexityMetric().compare(before, worse)
    assert found.difference == math.inf
    assert "inf" in str(found)
