"""Settings of all tests: one thread, fixed examples, long files first."""

import os

# Before torch is imported, which reads them once. Workers of pytest-xdist
# inherit them: each is one process on one core, and a thread that waits must
# not take the core of another worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings
from speechbrain.utils.importutils import LazyModule

torch.set_num_threads(1)

# Hypothesis asks every loaded module for its file; SpeechBrain's lazy modules
# would answer by importing k2 and the like, which need not be installed.
LazyModule.__file__ = None

# Property tests draw the same examples each time.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fixed")

# A worker takes whole files (``--dist loadfile``), in this order. A long file
# that starts last would run alone while the other workers have nothing to do.
# ``--durations=15`` also prints the longest files.
START_FIRST = (
    "tests/integration/test_upstream",
    "tests/integration/test_speaker_recipe.py",
    "tests/integration/test_multi_domain.py",
    "tests/integration/test_quantization_aware.py",
    "tests/unit/runtime/test_openvino.py",
    "tests/integration/cli/test_bench.py",
    "tests/docs/test_snippets.py",
    "tests/recipes/test_superb_recipes.py",
    "tests/integration/",
    "tests/unit/runtime/",
    "tests/recipes/",
    "tests/docs/",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sort files by `START_FIRST`; the rest keeps its order behind them."""

    def rank(item):
        for number, start in enumerate(START_FIRST):
            if item.nodeid.startswith(start):
                return number
        return len(START_FIRST)

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter, config):
    """With ``--durations``: seconds of each file, to keep the list above."""
    if not config.getoption("durations"):
        return
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "when"):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("slowest files")
    for name, total in seconds.most_common(15):
        terminalreporter.line(f"{total:8.1f} s  {name}")
