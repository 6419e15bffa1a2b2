"""The header of a safetensors file, in a fixed order."""

import json
import struct

__all__ = ["order_header"]


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
