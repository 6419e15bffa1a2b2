"""``publication.json``: the files of a publication, and their hashes.

It is written into the folder and uploaded with it. Here it tells whether a
folder may be replaced; on the hub, what an earlier publication has put into a
repository from what people have added or edited there.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

__all__ = [
    "MANIFEST",
    "FileHash",
    "file_names",
    "hash_file",
    "read_manifest",
    "write_manifest",
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


def file_names(folder: Path) -> list[str]:
    """Return the names of all files below a folder but the manifest."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    names = sorted(p.relative_to(folder).as_posix() for p in found)
    return [name for name in names if name != MANIFEST]


def hash_file(path: Path) -> FileHash:
    """Return the hashes of a file, which may be larger than the memory."""
    num_bytes = path.stat().st_size
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {num_bytes}\0".encode())
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha256.update(chunk)
            git.update(chunk)
    return FileHash(sha256.hexdigest(), git.hexdigest(), num_bytes)


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder; the same files give the same bytes."""
    files = {
        name: asdict(hash_file(folder / name)) for name in file_names(folder)
    }
    data = {"format": _FORMAT, "version": 1, "files": files}
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(data: bytes) -> Optional[dict[str, FileHash]]:
    """Return the files of a manifest, or None if it is not one of ours.

    Example
    -------
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
