"""The page on troubleshooting names errors that exist."""

import re

from speechbrain_stablequant import errors
from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def test_errors_of_headings_exist():
    names = re.findall(r"^## `(\w+Error)`", PAGE.read_text(), re.MULTILINE)
    assert len(names) == 3
    for name in names:
        assert issubclass(getattr(errors, name), errors.StableQuantError)
