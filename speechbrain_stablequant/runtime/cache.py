"""Compiled models on disk, so that the second start is quick."""

import dataclasses
import hashlib
import inspect
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

__all__ = ["CompiledCache", "default_cache_folder", "module_digest"]

_PLAIN = (bool, int, float, str, bytes, type(None))
# Hooks are numbered through by the process; our own come and go.
_INTERNAL = {*vars(nn.Module()), "forward", "quantize_input", "_weight_cache"}


def default_cache_folder() -> Path:
    """Return ``$STABLEQUANT_CACHE``, else a folder in the user's cache."""
    folder = os.environ.get("STABLEQUANT_CACHE")
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "speechbrain_stablequant" / "runtime"


class CompiledCache:
    """A folder of compiled models, by key.

    Only what this class wrote is read back, and nothing in it is executed by
    Python: a JSON description and the runtime's own binary.

    Arguments
    ---------
    folder : Path, optional
        Where to keep files; None keeps none.
    """

    def __init__(self, folder: Optional[Path]):
        self.folder = None if folder is None else Path(folder)

    def load(self, key: str) -> Optional[tuple[dict, bytes]]:
        """Return the description and the binary of a key, or None."""
        if self.folder is None:
            return None
        try:
            meta = json.loads(self._path(key, ".json").read_text("utf-8"))
            blob = self._path(key, ".blob").read_bytes()
        except (OSError, ValueError):
            return None
        if meta.get("sha256") != hashlib.sha256(blob).hexdigest():
            return None
        return meta, blob

    def store(self, key: str, meta: dict, blob: bytes) -> None:
        """Write a compiled model; a full disk is not worth a failure."""
        if self.folder is None:
            return
        meta = {**meta, "sha256": hashlib.sha256(blob).hexdigest()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(key, ".blob"), blob)
            self.update(key, meta)
        except OSError:
            self.remove(key)

    def update(self, key: str, meta: dict) -> None:
        """Write the description again."""
        if self.folder is not None:
            text = json.dumps(meta, indent=1)
            _write(self._path(key, ".json"), text.encode("utf-8"))

    def remove(self, key: str) -> None:
        """Forget a key."""
        if self.folder is not None:
            for ending in (".json", ".blob"):
                self._path(key, ending).unlink(missing_ok=True)

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / f"{key}{ending}"


def _write(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def module_digest(module: nn.Module) -> str:
    """Return a digest of all that the function of a module depends on.

    That is the source of its classes, their plain attributes (a transformers
    configuration included) and every parameter and buffer.

    Arguments
    ---------
    module : torch.nn.Module
        A module in evaluation mode.

    Example
    -------
    >>> a = nn.Linear(2, 2)
    >>> before = module_digest(a)
    >>> _ = torch.nn.init.zeros_(a.weight)
    >>> module_digest(a) == before
    False
    """
    digest = hashlib.sha256()
    sources: dict[type, str] = {}
    for name, child in module.named_modules():
        cls = type(child)
        if cls not in sources:
            sources[cls] = _source(cls)
        plain = {
            key: _plain(value)
            for key, value in sorted(vars(child).items())
            if key not in _INTERNAL and not key.startswith("_stablequant")
        }
        text = f"{name}|{cls.__qualname__}|{sources[cls]}|{plain}"
        digest.update(text.encode("utf-8"))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _source(cls: type) -> str:
    """Return a digest of the source of a class and its bases."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if base.__module__.startswith(("torch.", "builtins")):
            continue
        try:
            digest.update(inspect.getsource(base).encode("utf-8"))
        except (OSError, TypeError):
            digest.update(base.__qualname__.encode("utf-8"))
    return digest.hexdigest()


def _plain(value: Any, depth: int = 0) -> Any:
    """Return what of an attribute can be compared between two processes."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)) and depth < 4:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < 4:
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value), depth)
    if callable(getattr(value, "to_json_string", None)):
        return value.to_json_string()
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return type(value).__qualname__
