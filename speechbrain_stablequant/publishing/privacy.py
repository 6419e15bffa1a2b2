"""What must not be published with a model: paths of this machine, tokens."""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from yaml import ScalarNode

from speechbrain_stablequant.artifacts.hyperparams import descendants
from speechbrain_stablequant.errors import PublishError
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
    """Return what is private in some files: known paths, others, and tokens.

    Known paths are looked for in all files, also as JSON and HTML write them;
    what looks like another path of this machine, or a token, in text files.

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
        words.update(
            part.value.rstrip("/")
            for part in descendants(node)
            if isinstance(part, ScalarNode)
        )
    # "/root" or "/data" alone would be found in harmless places.
    return sorted(w for w in words if w.startswith("/") and w.count("/") > 1)


def without_paths(model: bytes) -> bytes:
    """Return a SentencePiece model without the paths of its training.

    Arguments
    ---------
    model : bytes
        The file.

    Returns
    -------
    bytes
        The same model; the same bytes if the file is of another kind.

    Raises
    ------
    PublishError
        If protobuf is missing, or does not fit sentencepiece.

    Example
    -------
    >>> without_paths(b"something else")
    b'something else'
    """
    try:
        SentencePieceProcessor().LoadFromSerializedProto(model)
    except RuntimeError:  # of another kind
        return model
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as err:  # protobuf refuses code of another version
        raise PublishError(
            "Paths of the training cannot be taken out of the SentencePiece "
            f"model: {err}. It needs the package protobuf, in a version that "
            "fits: pip install -U sentencepiece protobuf."
        ) from err
    proto = ModelProto.FromString(model)
    proto.trainer_spec.ClearField("input")
    proto.trainer_spec.ClearField("model_prefix")
    return proto.SerializeToString(deterministic=True)
