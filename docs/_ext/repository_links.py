"""READMEs of the repository as pages of the site, and links between all of it.

Pages and READMEs link to one another by relative paths, which work in a checkout
and where the repository is hosted. For the site the READMEs are copied to
``docs/repository`` and links follow them. Links to other files lead to the host,
where its address is known, else to copies that the site carries.
"""

import os
import re
from pathlib import Path

__all__ = ["Site", "setup", "under_one_title"]

_LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_COPIES = "repository"
_PATTERNS = ("*.md", "benchmarks/README.md", "recipes/**/README.md")
_ORPHAN = "---\norphan: true\n---\n\n"


class Site:
    """Where everything is.

    Arguments
    ---------
    pages : str or Path
        The folder of the pages, right below the repository's.
    address : str
        Of the hosted repository; empty if unknown.
    """

    def __init__(self, pages, address=""):
        self.pages, self.address = Path(pages), address
        self.root = self.pages.parent
        self.readmes = [
            path for pattern in _PATTERNS for path in self.root.glob(pattern)
        ]

    def copy_of(self, path):
        """Return where the copy of a README is."""
        return self.pages / _COPIES / path.relative_to(self.root)

    def copy_readmes(self):
        """Write the copies; those that are as they should be stay untouched."""
        wanted = {self.copy_of(path): path for path in self.readmes}
        for copy, path in wanted.items():
            text = under_one_title(path.read_text())
            text = self.follow(text, path, copy)
            if path == self.root / "README.md":
                text = _ORPHAN + text
            if not copy.is_file() or copy.read_text() != text:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(text)
        for copy in (self.pages / _COPIES).rglob("*.md"):
            if copy not in wanted:
                copy.unlink()

    def follow(self, text, written_in, shown_in):
        """Return a text with links that work where it is shown.

        Arguments
        ---------
        text : str
            Markdown.
        written_in : Path
            The file whose folder links are relative to.
        shown_in : Path
            The file that Sphinx reads.

        Returns
        -------
        str
            The text.
        """

        def replace(match):
            target = (written_in.parent / match[1]).resolve()
            return f"]({self._target(target, shown_in)}{match[2] or ''})"

        return _LINK.sub(replace, text)

    def _target(self, target, shown_in):
        if target in self.readmes:
            target = self.copy_of(target)
        outside = not target.is_relative_to(self.pages)
        if outside and target.suffix != ".svg":
            if self.address:
                path = target.relative_to(self.root).as_posix()
                return f"{self.address}/blob/HEAD/{path}"
            if target.suffix == ".md" or target.is_dir():
                raise ValueError(f"{shown_in}: no page for a link to {target}")
        return Path(os.path.relpath(target, shown_in.parent)).as_posix()


def under_one_title(text):
    """Put headings one level down where a text has several of the first.

    The READMEs of recipes have, as SpeechBrain's; on a site each would be a
    page of its own in the tables of contents.

    Arguments
    ---------
    text : str
        Markdown.

    Returns
    -------
    str
        The text.
    """
    lines, headings, inside = text.split("\n"), [], False
    for number, line in enumerate(lines):
        inside ^= line.lstrip().startswith("```")
        if not inside and re.match("#+ ", line):
            headings.append(number)
    if sum(lines[n].startswith("# ") for n in headings) > 1:
        for number in headings[1:]:
            lines[number] = "#" + lines[number]
    return "\n".join(lines)


def _site(app):
    return Site(app.srcdir, app.config.repository_url)


def _follow_pages(app, docname, source):
    """Let the links of a page follow; those of copies do already."""
    if not docname.startswith(f"{_COPIES}/"):
        path = Path(app.env.doc2path(docname))
        source[0] = _site(app).follow(source[0], path, path)


def setup(app):
    """Register the copying and the following."""
    app.add_config_value("repository_url", "", "env")
    app.connect("builder-inited", lambda app: _site(app).copy_readmes())
    app.connect("source-read", _follow_pages)
    return {"parallel_read_safe": True}
