"""What must not get out with a model: paths of this machine, tokens."""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Optional

from yaml import Node, ScalarNode

from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["find_private", "private_words", "without_paths"]

_TEXT = (".yaml", ".json", ".md", ".html", ".txt", ".xml")
_POSIX = re.compile(rb"(?<![\w/:.<>+=~$-])/([\w.-]+)/[^\s\"'<>|)\\]*")
_OTHERS = (
    re.compile(rb"\b[A-Za-z]:\\\\?[\w.-]+\\[^\s\"'<>|]*"),  # Windows
    re.compile(rb"\bfile:///?[^\s\"'<>|]+"),
    re.compile(rb"\bhf_[A-Za-z0-9]{30,}"),  # a token of the hub
)


def find_private(
    folder: Path, names: Sequence[str], words: Iterable[str]
) -> list[str]:
    """Return which files have one of some texts in them, or an absolute path.

    Texts are looked for in all files, in the ways that JSON and HTML write
    them; what looks like a path of this machine, or a token, in text files.

    Arguments
    ---------
    folder : Path
        Where the files are.
    names : sequence of str
        The files.
    words : iterable of str
        Paths that are known to be private.

    Returns
    -------
    list of str
        ``file: text`` for each.

    Example
    -------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.json").write_text(
    ...     '{"x": "/tmp/jane/a.csv", "y": "a/b"}'
    ... )
    >>> find_private(folder, ["a.json"], [])
    ['a.json: /tmp/jane/a.csv']
    """
    wanted = {form: word for word in words for form in _forms(word)}
    found = []
    for name in names:
        data = (folder / name).read_bytes()
        here = {word for form, word in wanted.items() if form in data}
        if name.endswith(_TEXT):
            here |= set(_paths(data))
        found += [f"{name}: {word}" for word in sorted(here)]
    return found


def _forms(word: str) -> set[bytes]:
    """Return the ways in which a text may be written in a file."""
    escaped = json.dumps(word)[1:-1]
    forms = (word, escaped, html.escape(word))
    return {f.encode() for f in forms} | {word.encode("utf-16-le")}


def _paths(data: bytes) -> Iterator[str]:
    """Yield absolute paths whose first folder this machine has, and tokens."""
    for match in _POSIX.finditer(data):
        if _is_folder_here(match.group(1).decode(errors="replace")):
            yield match.group(0).decode(errors="replace")
    for pattern in _OTHERS:
        for match in pattern.finditer(data):
            yield match.group(0).decode(errors="replace")


@cache
def _is_folder_here(name: str) -> bool:
    return (Path("/") / name).is_dir()


def private_words(recipe: Recipe) -> list[str]:
    """Return the paths of this machine that an experiment knows."""
    words = {
        str(recipe.experiment.folder.resolve()),
        str(recipe.experiment.ptq.resolve()),
        str(Path.cwd()),
        str(Path.home()),
    }
    for _, node in recipe.definitions.values():
        words.update(text.rstrip("/") for text in _texts(node))
    # "/root" or "/data" alone would be found in harmless places.
    return sorted(w for w in words if w.startswith("/") and w.count("/") > 1)


def _texts(node: Node) -> Iterator[str]:
    """Yield the absolute paths among the texts of a node."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, ScalarNode):
            if node.value.startswith("/"):
                yield node.value
            continue
        for child in node.value:
            todo += child if isinstance(child, tuple) else [child]


_TRAINER_SPEC, _PATHS = 2, (1, 2)
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def without_paths(model: bytes) -> bytes:
    """Return a SentencePiece model without the paths of its training.

    Arguments
    ---------
    model : bytes
        The file.

    Returns
    -------
    bytes
        The same model; the same bytes if it is none.

    Example
    -------
    >>> spec = b"\\x0a\\x05/text" + b"\\x20\\x07"  # input, vocab_size
    >>> model = b"\\x0a\\x03abc" + b"\\x12\\x09" + spec
    >>> without_paths(model)
    b'\\n\\x03abc\\x12\\x02 \\x07'
    >>> without_paths(b"something else")
    b'something else'
    """
    try:
        fields = list(_fields(model))
    except ValueError:
        return model
    parts = []
    for number, start, content, end in fields:
        if number == _TRAINER_SPEC and content is not None:
            parts.append(_without(model[content:end]))
        else:
            parts.append(model[start:end])
    return b"".join(parts)


def _without(spec: bytes) -> bytes:
    """Return field 2 with a trainer's specification that names no file."""
    try:
        kept = b"".join(
            spec[start:end]
            for number, start, _, end in _fields(spec)
            if number not in _PATHS
        )
    except ValueError:
        kept = spec
    key = _TRAINER_SPEC << 3 | _LENGTH
    return bytes([key]) + _varint(len(kept)) + kept


def _fields(data: bytes) -> Iterator[tuple[int, int, Optional[int], int]]:
    """Yield number, start, start of a content with length (or None), end."""
    position = 0
    while position < len(data):
        start = position
        key, position = _read_varint(data, position)
        number, kind = key >> 3, key & 7
        content = None
        if kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind == _EIGHT_BYTES:
            position += 8
        elif kind == _FOUR_BYTES:
            position += 4
        elif kind == _LENGTH:
            length, content = _read_varint(data, position)
            position = content + length
        else:
            raise ValueError(f"wire type {kind}")
        if number == 0 or position > len(data):
            raise ValueError("no protocol buffer")
        yield number, start, content, position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("no protocol buffer")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
