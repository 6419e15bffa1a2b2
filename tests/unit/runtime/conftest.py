"""Fixtures of the runtime tests."""

import pytest

from tests.unit.runtime.helpers import quantized_pair


@pytest.fixture
def pair():
    """Return a quantized `Pair`."""
    return quantized_pair()
