"""Agreement of outputs."""

import pytest
import torch

from speechbrain_stablequant.publishing.measure import agreement


def test_agreement_of_embeddings():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    found = agreement([a, a], [a, b])
    assert found["lowest_cosine"] == pytest.approx(0.5**0.5)
    assert found["utterances"] == 2
