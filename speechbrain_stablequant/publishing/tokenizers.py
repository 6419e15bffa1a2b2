"""SentencePiece models without the paths that training leaves in them.

A SentencePiece model keeps the names of the text files that it was trained on
and of the file that it was written to. Neither has a part in tokenization.

The format is protocol buffers (``sentencepiece_model.proto``): ``ModelProto``
has its ``TrainerSpec`` in field 2, and that ``input`` and ``model_prefix`` in
fields 1 and 2.
"""

from collections.abc import Iterator
from typing import Optional

__all__ = ["without_paths"]

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
