"""Code blocks and links of the Markdown files, with what is said about them.

A comment in front of a block says how it is tested::

    <!-- test: run -->                   Python, after the page's earlier blocks
    <!-- test: run with model -->        ... with the names of a set-up
    <!-- test: skip, the reason -->      not at all
    <!-- test: in recipes/X/Y -->        shell, in that folder of the repository
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not {"repository", "_build"} & set(path.relative_to(ROOT).parts)
]
FRONT = [ROOT / "README.md", *PAGES]
READMES = [
    *sorted((ROOT / "recipes").rglob("README.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
_FENCE = re.compile(r"^( *)```(\S*)(?: .*)?$")
_COMMENT = re.compile(r"^ *<!-- test: (.+?) -->$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+?)\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Arguments
    ---------
    path : Path
        The page.
    line : int
        Line of the fence, from 1.
    language : str
        What follows the fence.
    text : str
        The code, without indentation.
    remark : str
        What the comment in front of it says of the test; empty without one.
    """

    path: Path
    line: int
    language: str
    text: str
    remark: str

    @property
    def skipped(self) -> bool:
        """Whether a reason is given not to test it."""
        return self.remark.startswith("skip, ")

    def __str__(self):
        return f"{name(self.path)}:{self.line}"


def name(path: Path) -> str:
    """Return a path as the repository knows it."""
    return path.relative_to(ROOT).as_posix()


def blocks(paths, language: str) -> list[Block]:
    """Return all blocks of a language in some pages."""
    found = [block for path in paths for block in _blocks(path)]
    return [block for block in found if block.language == language]


def _blocks(path: Path):
    remark, start, lines = "", None, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if start is None and fence:
            start, lines = (number, fence[2]), []
        elif start is not None and fence:
            text = textwrap.dedent("\n".join(lines))
            yield Block(path, *start, text, remark)
            remark, start = "", None
        elif start is not None:
            lines.append(line)
        elif _COMMENT.match(line):
            remark = _COMMENT.match(line)[1]
        elif line.strip():
            remark = ""


def prose(path: Path) -> str:
    """Return a page without its code."""
    kept, inside = [], False
    for line in path.read_text().splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(re.sub(r"`[^`]*`", "", line))
    return "\n".join(kept)


def links(path: Path) -> list[str]:
    """Return the targets of all links of a page."""
    return _LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    found, inside = set(), False
    for line in path.read_text().splitlines():
        if _FENCE.match(line):
            inside = not inside
        heading = _HEADING.match(line)
        if heading and not inside:
            plain = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(plain.replace(" ", "-"))
    return found
