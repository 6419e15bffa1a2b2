"""The documentation builds without a warning, and says what it must say."""

import doctest
import importlib.util
import runpy
import sys
from dataclasses import dataclass
from io import StringIO

import pytest

from speechbrain_stablequant.cli import build_parser
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
# Sphinx announces what its extensions will have to change
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("myst_parser") is None,
    reason='pip install -e ".[docs]"',
)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site once, warnings as errors; return its folder.

    In this process, which has imported most of what autodoc asks for. Theme and
    pages of sources take half of the time of ``make docs`` and find no errors.
    """
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    folder, warnings = tmp_path_factory.mktemp("site"), StringIO()
    docs = ROOT / "docs"
    extensions = runpy.run_path(docs / "conf.py")["extensions"]
    extensions.remove("sphinx.ext.viewcode")
    settings = {"html_theme": "basic", "extensions": extensions}
    with patch_docutils(docs), docutils_namespace():
        app = Sphinx(
            docs,
            docs,
            folder,
            folder / ".doctrees",
            "html",
            confoverrides=settings,
            status=None,
            warning=warnings,
        )
        app.build()
    assert not warnings.getvalue(), warnings.getvalue()[-5000:]
    return folder


@needs_sphinx
def test_site_has_all_options_and_commands(site):
    options = (site / "reference" / "options.html").read_text()
    for name in ("checkpointer", "max_drop", "search_num_bytes", "step_lr"):
        assert f"<strong>{name}</strong>" in options
    page = (site / "reference" / "command_line.html").read_text()
    parsers = build_parser()._subparsers._group_actions[0].choices
    assert "publish" in parsers
    for command in parsers:
        assert f'id="{command}"' in page


@needs_sphinx
def test_site_has_docstrings_with_their_arguments(site):
    page = (site / "reference" / "api" / "package.html").read_text()
    assert 'id="speechbrain_stablequant.quantize"' in page
    assert "<strong>batches</strong>" in page
    assert "Arguments\n" not in page


@needs_sphinx
def test_an_option_without_description_stops_the_build():
    from option_reference import read_options
    from sphinx.errors import ExtensionError

    @dataclass
    class Options:
        """Some.

        Arguments
        ---------
        told : int
            Said.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(ExtensionError, match="'untold' of Options has no"):
        read_options(Options)


@needs_sphinx
def test_a_description_without_an_option_stops_the_build():
    from option_reference import read_options
    from sphinx.errors import ExtensionError

    class Options:
        """Some.

        Arguments
        ---------
        kept : int
            Said.
        gone : int
            Said.
        """

        def __init__(self, kept=1):
            self.kept = kept

    with pytest.raises(ExtensionError, match="no option of its own: gone"):
        read_options(Options)


def follow(text, page, address=""):
    from repository_links import Site

    path = ROOT / "docs" / page
    return Site(ROOT / "docs", address).follow(text, path, path)


def test_links_to_readmes_lead_to_their_pages():
    text = "[a](../../README.md#limits) [b](../concepts.md) [c](https://x.y)"
    assert follow(text, "howto/index.md") == (
        "[a](../repository/README.md#limits) [b](../concepts.md) [c](https://x.y)"
    )


def test_links_to_files_get_the_address_of_the_repository():
    text = "[a](../hparams/ptq.yaml) ![b](../recipes/SUPERB/superb.svg)"
    assert follow(text, "index.md") == text
    assert follow(text, "index.md", "https://host/x") == (
        "[a](https://host/x/blob/HEAD/hparams/ptq.yaml) "
        "![b](../recipes/SUPERB/superb.svg)"
    )


def test_links_of_a_readme_work_in_its_copy():
    from repository_links import Site

    site = Site(ROOT / "docs")
    readme = ROOT / "recipes" / "SUPERB" / "README.md"
    text = "[KS](KS/README.md) ![x](superb.svg)"
    assert site.follow(text, readme, site.copy_of(readme)) == (
        "[KS](KS/README.md) ![x](../../../../recipes/SUPERB/superb.svg)"
    )


def test_a_readme_has_one_title_in_its_copy():
    from repository_links import under_one_title

    text = "# A\n# B\n```shell\n# no heading\n```\n## C\n"
    expected = "# A\n## B\n```shell\n# no heading\n```\n### C\n"
    assert under_one_title(text) == expected
    assert under_one_title("# A\n## B\n") == "# A\n## B\n"


def test_examples_of_the_extensions():
    import argument_sections

    assert doctest.testmod(argument_sections).attempted
    assert not doctest.testmod(argument_sections).failed
