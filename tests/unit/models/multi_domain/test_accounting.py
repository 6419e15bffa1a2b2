"""How much a domain adds, against counts by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant import quantize
from speechbrain_stablequant.models.multi_domain import (
    DomainConfig,
    MultiDomainLM,
    added_parameters,
)
from speechbrain_stablequant.models.multi_domain.accounting import (
    num_parameters,
)
from tests.unit.models.multi_domain import models


def counts_by_hand(config, layers, width, vocab):
    """Return adapters, layer norms and output, term by term."""
    bottleneck, rank = config.bottleneck, config.rank
    adapter = (width * bottleneck + bottleneck) + (bottleneck * width + width)
    norms = (2 * layers + 2) * 2 * width if config.layer_norms else 0
    output = {
        "none": vocab * config.output_bias,
        "low_rank": rank * (width + vocab) + vocab * config.output_bias,
        "full": width * vocab + vocab,
    }[config.related_layers]
    return 2 * layers * adapter, norms, output


def trunk_by_hand(vocab, width, layers, ffn):
    attention = 4 * (width * width + width)
    feed_forward = 2 * width * ffn + ffn + width
    layer = attention + feed_forward + 4 * width
    head = (width * width + width) + 2 * width + (width * vocab + vocab)
    return vocab * width + layers * layer + 2 * width + head


@given(
    st.builds(
        DomainConfig,
        bottleneck=st.integers(1, 20),
        layer_norms=st.booleans(),
        related_layers=st.sampled_from(["none", "low_rank", "full"]),
        rank=st.integers(1, 20),
        output_bias=st.booleans(),
    ),
    st.integers(1, 3),
    st.sampled_from([4, 8, 12]),
    st.integers(3, 50),
)
def test_counts_by_hand(config, layers, width, vocab):
    trunk = models.transformer(
        num_encoder_layers=layers, d_model=width, d_ffn=20, vocab=vocab
    )
    (row,) = added_parameters(MultiDomainLM(trunk, {"a": config}))
    expected = counts_by_hand(config, layers, width, vocab)
    assert (row.adapters, row.layer_norms, row.related_layers) == expected
    assert row.total == sum(expected)
    total = trunk_by_hand(vocab, width, layers, 20)
    assert num_parameters(trunk) == total
    assert row.percent == pytest.approx(100 * sum(expected) / total)


@pytest.fixture(scope="module")
def paper_class():
    """Return a model of the paper's size, without memory for its weights."""
    with torch.device("meta"):
        return models.transformer(
            vocab=8000, d_model=512, nhead=8, num_encoder_layers=9, d_ffn=2048
        )


def test_two_and_thirteen_percent(paper_class):
    lm = MultiDomainLM(
        paper_class,
        {
            "first": DomainConfig.paper(first=True),
            "second": DomainConfig.paper(first=False),
            "third": DomainConfig.paper(first=False),
        },
    )
    rows = list(added_parameters(lm))
    assert [round(row.percent) for row in rows] == [2, 13, 13]
    assert rows[0].related_layers == 0
    assert rows[1].adapters == rows[0].adapters


def test_ours_stays_below_two_percent(paper_class):
    """Of that model for every domain, the layers of later ones included."""
    (row,) = added_parameters(MultiDomainLM(paper_class, ["a"]))
    assert row.related_layers > 0
    assert row.percent < 2


@pytest.mark.parametrize("bits", ["W8", "W4", "W1"])
@pytest.mark.parametrize("make", [models.transformer, models.recurrent])
def test_quantized_counts_as_float_does(make, bits):
    lm = MultiDomainLM(make(), ["a", "b"])
    expected = list(added_parameters(lm))
    trunk = num_parameters(lm.trunk)
    assert trunk == sum(p.numel() for p in lm.trunk.parameters())
    quantize(lm.trunk, bits=bits, progress=False)
    assert num_parameters(lm.trunk) == trunk
    assert list(added_parameters(lm)) == expected


def test_quantized_domains_count_as_float_ones_do():
    lm = MultiDomainLM(models.transformer(), ["a", "b"])
    expected = list(added_parameters(lm))
    result = quantize(lm, bits="W4", progress=False)
    assert list(added_parameters(lm)) == expected
    result.restore()
    assert list(added_parameters(lm)) == expected


def test_without_domains():
    assert list(added_parameters(MultiDomainLM(models.transformer()))) == []
