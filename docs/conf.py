"""Settings of the documentation: ``make docs`` builds it without network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

import speechbrain_stablequant

lexers["mermaid"] = TextLexer()  # hosts draw it; the site shows its source

project = "speechbrain_stablequant"
author = "The authors of speechbrain_stablequant"
version = release = speechbrain_stablequant.__version__
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "option_reference",
    "command_reference",
    "repository_links",
]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]

# Read the Docs says where the repository is; elsewhere links into it lead to
# copies of the files.
repository_url = os.environ.get("READTHEDOCS_GIT_CLONE_URL", "")
repository_url = repository_url.removesuffix(".git")

html_theme = "furo"
html_title = f"stablequant {version}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

# Docstrings are written for reading in the source: `name` is an object if
# there is one, and plain code otherwise.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_ivar = True
