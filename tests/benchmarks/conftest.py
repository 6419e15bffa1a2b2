"""Tests of the benchmarks have a marker; ``make test-all`` runs them."""

from pathlib import Path

import pytest

from tests.integration.conftest import experiment, trained

__all__ = ["experiment", "trained"]
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is in this folder, before ``-m`` selects."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.benchmark)
