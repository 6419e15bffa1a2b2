"""What the page on troubleshooting quotes is what the package says."""

import re

import pytest

from speechbrain_stablequant import errors
from tests.docs.markdown import ROOT, anchors

PAGE = ROOT / "docs" / "troubleshooting.md"
PUBLISHING = ROOT / "speechbrain_stablequant" / "publishing"


def messages() -> list[str]:
    """Return what the table of refusals quotes, in italics or as code."""
    _, _, table = PAGE.read_text().partition("## Publishing is refused")
    rows = [r for r in table.splitlines() if r.startswith("| ")][1:]
    cells = [row.split("|")[1] for row in rows]
    found = [q for cell in cells for q in re.findall(r"\*(.+?)\*", cell)]
    found += [q for cell in cells for q in re.findall(r"`([A-Z ]+)`", cell)]
    return [part.strip() for quoted in found for part in quoted.split("...")]


def said() -> str:
    """Return the source of publishing, with the pieces of texts joined."""
    text = "\n".join(path.read_text() for path in PUBLISHING.rglob("*.py"))
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", messages())
def test_quoted_messages_are_in_the_code(message):
    assert message in said()


def test_all_refusals_are_quoted():
    assert len(messages()) >= 7


def test_errors_of_headings_exist():
    names = re.findall(r"^## `(\w+Error)`", PAGE.read_text(), re.MULTILINE)
    assert len(names) == 3
    for name in names:
        assert issubclass(getattr(errors, name), errors.StableQuantError)
        assert any(a.startswith(name.lower()) for a in anchors(PAGE))
