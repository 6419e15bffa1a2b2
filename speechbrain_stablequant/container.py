"""Write a safetensors file: the same bytes each time, all of them or none."""

import json
import os
import struct
import tempfile
from pathlib import Path

__all__ = ["order_header", "write_atomically"]


def order_header(data: bytes) -> bytes:
    """Put the metadata of a safetensors file into a fixed order.

    safetensors keeps metadata in a hash map: their order, and with it the
    bytes of the file, would differ from one call to the next.

    Arguments
    ---------
    data : bytes
        The file.

    Returns
    -------
    bytes
        The same content; tensors stay where they are.

    Example
    -------
    >>> import torch
    >>> from safetensors.torch import load, save
    >>> metadata = {key: "" for key in "abcdefgh"}
    >>> tensors = {"x": torch.ones(2)}
    >>> files = [order_header(save(tensors, metadata)) for _ in range(9)]
    >>> len(set(files)), load(files[0])["x"].tolist()
    (1, [1.0, 1.0])
    """
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    ordered = text.encode()
    ordered += b" " * (-len(ordered) % 8)  # tensors start aligned
    return struct.pack("<Q", len(ordered)) + ordered + data[8 + length :]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name and move it into place at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
