"""Figures of the pages are those that recipes and benchmarks have measured."""

import re

import pytest

from tests.docs.markdown import FRONT, READMES, ROOT, blocks, name, prose

DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])")
INTERVAL = re.compile(r"\[[-+]?\d+\.\d+, [-+]?\d+\.\d+\]")
# Real output of commands on the demo's experiment, which no README repeats
OWN_OUTPUT = {"docs/howto/look_and_edit.md", "docs/howto/publish.md"}
MEASURED = "\n".join(path.read_text() for path in READMES)


@pytest.mark.parametrize("path", FRONT, ids=name)
def test_intervals_are_in_a_readme(path):
    text = prose(path)
    if name(path) not in OWN_OUTPUT:
        text += "\n".join(block.text for block in blocks([path], "text"))
    for interval in INTERVAL.findall(text):
        assert interval in MEASURED, f"no README has {interval}"


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("docs/comparison.md", "benchmarks/README.md"),
        (
            "docs/tutorials/speaker_verification.md",
            "recipes/VoxCeleb/SpeakerRec/README.md",
        ),
        (
            "docs/tutorials/multi_domain_lm.md",
            "recipes/MultiDomainLM/README.md",
        ),
        ("docs/tutorials/low_bit_encoders.md", "recipes/SUPERB/README.md"),
    ],
)
def test_tables_are_those_of_their_source(page, source):
    """Each number of a table stands in a table of the source."""
    measured = set(_numbers(ROOT / source))
    found = _numbers(ROOT / page)
    assert found
    assert set(found) <= measured


def _numbers(path):
    """Return the decimal numbers in the tables of a page."""
    rows = [r for r in prose(path).splitlines() if r.strip().startswith("|")]
    return DECIMAL.findall("\n".join(rows))


@pytest.mark.parametrize("path", FRONT, ids=name)
def test_figures_of_outputs_are_measured(path):
    """Each number in the output of a run stands in a README."""
    if name(path) in OWN_OUTPUT:
        pytest.skip("output of commands on the demo's experiment")
    measured = set(DECIMAL.findall(MEASURED))
    for block in blocks([path], "text"):
        missing = set(DECIMAL.findall(block.text)) - measured
        assert not missing, f"{block}: no README has {sorted(missing)}"
