"""The header of a safetensors file: in a fixed order, and read by itself."""

import json
import struct
from pathlib import Path

from speechbrain_stablequant.errors import SourceError

__all__ = ["is_safetensors", "order_header", "read_raw_header", "tensor_sizes"]


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


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like safetensors, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(10)[8:] == b'{"'


def read_raw_header(path: Path) -> dict:
    """Return the JSON header of a safetensors file, whoever wrote it.

    Raises
    ------
    SourceError
        If the header is damaged.
    """
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise SourceError(f"{path} is damaged: it is cut off.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as err:
            raise SourceError(f"{path} is damaged: {err}.") from err
    if not isinstance(header.get("__metadata__", {}), dict):
        raise SourceError(f"{path} is damaged: its header has no metadata.")
    return header


def tensor_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of each tensor, of a file that was verified before."""
    header = read_raw_header(path)
    header.pop("__metadata__", None)
    spans = {name: about["data_offsets"] for name, about in header.items()}
    return {name: end - begin for name, (begin, end) in spans.items()}
