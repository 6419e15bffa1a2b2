"""What a publication consists of: its files and their hashes.

The list travels with the files. It tells what an earlier publication has put
into a repository from what people have put there by hand.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Union

from speechbrain_stablequant.errors import PublishError

__all__ = [
    "MANIFEST",
    "FileHash",
    "hash_bytes",
    "hash_files",
    "manifest_bytes",
    "read_manifest",
]

MANIFEST = "publication.json"
_FORMAT = "speechbrain_stablequant.publication"


@dataclass(frozen=True)
class FileHash:
    """Hashes of a file, as hubs give them.

    Arguments
    ---------
    sha256 : str
        Of the content; hubs give it for large and binary files.
    git_sha1 : str
        Of git's blob; hubs give it for other files.
    num_bytes : int
        Size of the file.
    """

    sha256: str
    git_sha1: str
    num_bytes: int

    def matches(self, remote_hash: Optional[str]) -> bool:
        """Whether a file on the hub, by its one hash, has this content."""
        return remote_hash in (self.sha256, self.git_sha1)


def hash_bytes(data: bytes) -> FileHash:
    """Return the hashes of some bytes.

    Example
    -------
    >>> hash_bytes(b"").git_sha1
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return _hash([data], len(data))


def hash_files(
    folder: Union[str, Path], files: Iterable[str]
) -> dict[str, FileHash]:
    """Return the hashes of files by their names.

    Arguments
    ---------
    folder : str or Path
        Where the files are.
    files : iterable of str
        Names relative to it, with ``/`` between folders.

    Raises
    ------
    PublishError
        If one is no file, or lies outside of the folder.
    """
    folder = Path(folder)
    return {
        name: _hash_file(_inside(folder, name))
        for name in files
        if name != MANIFEST
    }


def _inside(folder: Path, name: str) -> Path:
    parts = name.split("/")
    if not name or "\\" in name or {"", ".", ".."} & set(parts):
        raise PublishError(
            f"'{name}' cannot be published: give names relative to {folder}, "
            "with / between folders."
        )
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise PublishError(f"{path} cannot be published: there is no file.")
    return path


def _hash_file(path: Path) -> FileHash:
    with path.open("rb") as file:
        chunks = iter(lambda: file.read(1 << 20), b"")
        return _hash(chunks, path.stat().st_size)


def _hash(chunks: Iterable[bytes], num_bytes: int) -> FileHash:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {num_bytes}\0".encode())
    for chunk in chunks:
        sha256.update(chunk)
        git.update(chunk)
    return FileHash(sha256.hexdigest(), git.hexdigest(), num_bytes)


def manifest_bytes(files: Mapping[str, FileHash]) -> bytes:
    """Return the list of files as JSON, the same for the same files."""
    data = {
        "format": _FORMAT,
        "version": 1,
        "files": {name: asdict(hashes) for name, hashes in files.items()},
    }
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(data: bytes) -> Optional[dict[str, FileHash]]:
    """Return the files of a list, or None if it is no list of ours.

    Example
    -------
    >>> files = {"plan.json": hash_bytes(b"{}")}
    >>> read_manifest(manifest_bytes(files)) == files
    True
    >>> read_manifest(b"[]") is None
    True
    """
    try:
        found = json.loads(data)
        if found["format"] != _FORMAT:
            return None
        return {
            str(name): FileHash(
                str(item["sha256"]),
                str(item["git_sha1"]),
                int(item["num_bytes"]),
            )
            for name, item in found["files"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
