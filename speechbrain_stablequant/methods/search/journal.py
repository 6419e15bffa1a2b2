"""The journal of a search: what an interrupted search need not do again."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from speechbrain_stablequant.metrics.metric import Item

__all__ = ["Journal", "fingerprint", "weights_digest"]


def weights_digest(root: nn.Module) -> str:
    """Return a hash of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(root.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return a short hash of plain data."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Results of a search by key, on disk line by line.

    One line a result, flushed at once: an interrupted search loses at most the
    line that it was writing, which is ignored when read. The first line names
    the search; a journal of another one (other weights, data or options) is
    set aside, never deleted.

    Arguments
    ---------
    folder : str or Path, optional
        Where to write ``search.jsonl``; None keeps results in memory only.
    identity : str
        Fingerprint of the search.
    rank : int
        Rank of this process; each writes a file of its own, all read all.
    """

    def __init__(self, folder: Optional[Path], identity: str, rank: int = 0):
        self.identity = identity
        self.results: dict[str, list[Item]] = {}
        self.resumed = 0
        self._file = self._path = None
        if folder is None:
            return
        name = f"search.rank{rank}.jsonl" if rank else "search.jsonl"
        self._path = Path(folder) / name
        for path in sorted(Path(folder).glob("search*.jsonl")):
            self._read(path)
        self.resumed = len(self.results)

    def _read(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or _parse(lines[0]) != {"search": self.identity}:
            return
        for line in lines[1:]:
            entry = _parse(line)
            if isinstance(entry, dict) and "key" in entry:
                items = [Item(*item) for item in entry["items"]]
                self.results[entry["key"]] = items

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = False
        if path.exists() and path.stat().st_size:
            with open(path, encoding="utf-8", errors="replace") as file:
                ours = _parse(file.readline()) == {"search": self.identity}
            if not ours:
                os.replace(path, path.with_suffix(f".{_stamp(path)}.old"))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        # A line that an interrupted process left unfinished would swallow the
        # next entry: end it first. The empty entry is ignored when read.
        self._write({} if ours else {"search": self.identity}, newline=ours)

    def _write(self, entry: dict, newline: bool = False) -> None:
        prefix = "\n" if newline else ""
        self._file.write(prefix + json.dumps(entry) + "\n")
        self._file.flush()

    def put(self, key: str, items: list[Item]) -> None:
        """Remember the items of one evaluation."""
        self.results[key] = items
        if self._path is not None:
            if self._file is None:
                self._open(self._path)
            self._write({"key": key, "items": items})

    def get(self, key: str) -> Optional[list[Item]]:
        """Return the items of one evaluation, or None."""
        return self.results.get(key)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _stamp(path: Path) -> str:
    """Return a name for an old journal that no other has."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]
