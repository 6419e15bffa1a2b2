"""Compiled models on disk, so that the second start is quick.

The key of an entry is a digest of everything that the result of a graph
depends on (`module_digest`, `library_digest` and the settings of the backend).
A missing ingredient would mean results of another model; an unneeded one only
costs a compilation. When in doubt, something is included.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from speechbrain_stablequant.core.files import write_atomically

__all__ = ["CompiledCache", "default_cache_folder", "module_digest"]

_PLAIN = (bool, int, float, str, bytes, type(None))
_DEPTH = 4
# Attributes that do not decide what a module computes: hooks are numbered by
# the process, our own attributes come and go with acceleration, and it does
# not matter where a configuration was read from.
_INTERNAL = {
    *vars(nn.Module()),
    *("forward", "quantize_input", "_weight_cache"),
    *("name_or_path", "_name_or_path"),
}


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
        digest = hashlib.sha256(blob).hexdigest()
        if not isinstance(meta, dict) or meta.get("sha256") != digest:
            return None
        return meta, blob

    def store(self, key: str, meta: dict, blob: bytes) -> None:
        """Write a compiled model.

        Write errors are ignored: the cache is an optimisation.
        """
        if self.folder is None:
            return
        meta = {**meta, "sha256": hashlib.sha256(blob).hexdigest()}
        try:
            # The description last: it holds the digest of the blob, so that
            # readers never pair it with one that is older or still missing.
            write_atomically(self._path(key, ".blob"), blob)
            self._describe(key, meta)
        except OSError:
            self.remove(key)

    def update(self, key: str, changes: dict) -> None:
        """Change the description of a key, if it is still there."""
        found = self.load(key)
        if found is not None:
            with contextlib.suppress(OSError):
                self._describe(key, {**found[0], **changes})

    def remove(self, key: str) -> None:
        """Forget a key."""
        if self.folder is not None:
            for ending in (".json", ".blob"):
                with contextlib.suppress(OSError):
                    self._path(key, ending).unlink(missing_ok=True)

    def _describe(self, key: str, meta: dict) -> None:
        text = json.dumps(meta, indent=1)
        write_atomically(self._path(key, ".json"), text.encode("utf-8"))

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / f"{key}{ending}"


def module_digest(module: nn.Module) -> str:
    """Return a digest of all that the results of a module depend on.

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
        digest.update(f"{name}{_content(tensor)}".encode())
    return digest.hexdigest()


@functools.cache
def library_digest() -> str:
    """Return a digest of the libraries that a graph is made with.

    This package's own source is part of it: a fix in a lowering must not find
    graphs of before.
    """
    digest = hashlib.sha256()
    for name in ("torch", "speechbrain", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{name} {metadata.version(name)}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _content(tensor: torch.Tensor) -> str:
    """Return type, shape and a digest of the values of a tensor."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    values = hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest()
    return f"{tensor.dtype}{tuple(tensor.shape)}{values}"


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
    """Describe an attribute so that two processes can compare it.

    Values of unknown kinds are described by their type alone: their ``repr``
    may contain an address, which would change the key at each start.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return _content(value)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if callable(getattr(value, "to_json_string", None)):  # transformers
        plain = json.loads(value.to_json_string())
        return str({k: v for k, v in plain.items() if k not in _INTERNAL})
    name = type(value).__qualname__
    if depth >= _DEPTH:
        return name
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_plain(item, depth + 1)) for item in value)
    if isinstance(value, dict):
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value)]
        return [_plain(getattr(value, f), depth + 1) for f in fields]
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return _plain(parts, depth)
    if isinstance(value, nn.Module):  # not registered: inside a list, say
        return f"{_source(type(value))} {_plain(vars(value), depth + 1)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return _function(value, depth)
    return name


def _function(value: Any, depth: int) -> str:
    """Describe a function by its name, bytecode, closure and defaults.

    Not by its source: lambdas and functions of notebooks may have none.
    """
    text = f"{value.__module__}.{value.__qualname__}"
    code = getattr(value, "__code__", None)
    if code is None:
        return text
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    constants = [c for c in code.co_consts if isinstance(c, _PLAIN)]
    bound = _plain([cells, value.__defaults__, constants], depth + 1)
    return f"{text} {code.co_code.hex()} {code.co_names} {bound}"
