"""Dense packing of 1 to 8 bit integers into 32-bit words.

A row of values becomes a little-endian stream of bits, filled up with zeros to
whole 32-bit words. What is stored are unsigned codes: an integer's distance
from the lowest one of its bit width, over two for odd levels, which leave out
every second integer. For 1, 2, 4 and 8 bits this is the layout of
``pack_quantized`` in compressed-tensors; for 3, 5, 6 and 7 bits a value may
cross words, so that no bit is lost.

Ternary values go five to a byte, the first as the lowest digit of a number in
base 3 (3**5 = 243 <= 256): 1.6 bits each. Bytes of 243 and more do not occur.
"""

import numpy as np
import torch

from speechbrain_stablequant.core.plan import QuantizationScheme

__all__ = [
    "pack",
    "pack_nibbles",
    "packed_num_bytes",
    "packed_words",
    "scale_num_bytes",
    "unpack",
]
_TRITS = 5  # ternary digits in a byte
_TERNARY_CODES = 3**_TRITS
_PLACES = 3 ** np.arange(_TRITS)


def packed_words(count: int, scheme: QuantizationScheme) -> int:
    """Return how many 32-bit words hold ``count`` values of a row.

    Arguments
    ---------
    count : int
        Number of values.
    scheme : QuantizationScheme
        Integer scheme.

    Returns
    -------
    int
        Words.

    Example
    -------
    >>> packed_words(320, QuantizationScheme(bits=2))
    20
    >>> packed_words(320, QuantizationScheme(bits=2, levels="ternary"))
    16
    """
    if scheme.is_ternary:
        return -(-count // (4 * _TRITS))
    return -(-count * scheme.bits // 32)


def packed_num_bytes(shape, scheme: QuantizationScheme) -> int:
    """Return the size of a weight in a checkpoint, scales included.

    Arguments
    ---------
    shape : tuple of int
        Channels and values in a channel.
    scheme : QuantizationScheme
        Scheme of the weight.

    Returns
    -------
    int
        Bytes.

    Example
    -------
    >>> packed_num_bytes((10, 64), QuantizationScheme(bits=4))
    360
    """
    channels, count = shape
    if scheme.is_float:
        return channels * count * 2
    packed = channels * packed_words(count, scheme) * 4
    return packed + scale_num_bytes(shape, scheme)


def scale_num_bytes(shape, scheme: QuantizationScheme) -> int:
    """Return the size of the scales (and zero points) of a weight.

    Arguments
    ---------
    shape : tuple of int
        Channels and values in a channel.
    scheme : QuantizationScheme
        Scheme of the weight.

    Returns
    -------
    int
        Bytes.

    Example
    -------
    >>> scale_num_bytes((10, 64), QuantizationScheme(bits=4))
    40
    """
    if scheme.is_float:
        return 0
    channels, groups = scheme.scale_shape(*shape)
    return channels * groups * (4 if scheme.symmetric else 5)


def _lowest(scheme: QuantizationScheme) -> int:
    """Return the integer whose code is 0."""
    if scheme.level_step > 1 or scheme.is_ternary:
        return scheme.qmin
    # Not qmin: a narrow range has the codes of the full one.
    return -(2 ** (scheme.bits - 1)) if scheme.signed else 0


def _codes(values: torch.Tensor, scheme: QuantizationScheme) -> np.ndarray:
    """Map integers to unsigned codes that fit into ``bits`` bits."""
    plain = values.cpu().numpy().astype(np.int16)
    codes = (plain - _lowest(scheme)) // scheme.level_step
    return codes.astype(np.uint8)


def pack(values: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
    """Pack rows of integers.

    Arguments
    ---------
    values : torch.Tensor
        (channels, n) int8 or uint8.
    scheme : QuantizationScheme
        Integer scheme of the values.

    Returns
    -------
    torch.Tensor
        (channels, words) int32.

    Example
    -------
    >>> scheme = QuantizationScheme(bits=3)
    >>> values = torch.tensor([[-3, 0, 3, 1, -1]], dtype=torch.int8)
    >>> pack(values, scheme).shape
    torch.Size([1, 1])
    >>> unpack(pack(values, scheme), 5, scheme).tolist()
    [[-3, 0, 3, 1, -1]]
    """
    codes = _codes(values, scheme)
    channels, count = codes.shape
    words = packed_words(count, scheme)
    if scheme.is_ternary:
        digits = np.zeros((channels, words * 4 * _TRITS), dtype=np.uint8)
        digits[:, :count] = codes
        numbers = digits.reshape(channels, -1, _TRITS) @ _PLACES
        stream = np.ascontiguousarray(numbers.astype(np.uint8))
    elif scheme.bits == 8:
        stream = np.zeros((channels, words * 4), dtype=np.uint8)
        stream[:, :count] = codes
    else:
        # One byte a bit, for `packbits`; an integer may then cross bytes and
        # words. Eight times the memory of the weight, for a moment.
        bits = np.zeros((channels, words * 32), dtype=np.uint8)
        places = np.arange(scheme.bits, dtype=np.uint8)
        spread = (codes[..., None] >> places) & 1
        bits[:, : count * scheme.bits] = spread.reshape(channels, -1)
        stream = np.packbits(bits, axis=1, bitorder="little")
    return torch.from_numpy(stream.view("<i4").astype(np.int32))


def unpack(
    packed: torch.Tensor, count: int, scheme: QuantizationScheme
) -> torch.Tensor:
    """Undo `pack`.

    Arguments
    ---------
    packed : torch.Tensor
        (channels, words) int32.
    count : int
        Number of values in a row.
    scheme : QuantizationScheme
        Integer scheme of the values.

    Returns
    -------
    torch.Tensor
        (channels, count) int8 or uint8.

    Raises
    ------
    ValueError
        If the number of words does not go with ``count``, or bytes are none
        that `pack` writes for ternary values.
    """
    channels, words = packed.shape
    if words != packed_words(count, scheme):
        raise ValueError(
            f"{words} words cannot hold rows of {count} values of "
            f"{scheme.bits} bits, {scheme.levels} levels."
        )
    stream = packed.cpu().numpy().astype("<i4").view(np.uint8)
    stream = stream.reshape(channels, words * 4)
    if scheme.is_ternary:
        codes = _ternary_codes(stream)[:, :count]
    elif scheme.bits == 8:
        codes = stream[:, :count]
    else:
        bits = np.unpackbits(stream, axis=1, bitorder="little")
        bits = bits[:, : count * scheme.bits]
        bits = bits.reshape(channels, count, scheme.bits)
        places = np.arange(scheme.bits, dtype=np.uint8)
        codes = (bits << places).sum(-1, dtype=np.uint8)
    plain = codes.astype(np.int16) * scheme.level_step + _lowest(scheme)
    plain = plain.astype(np.int8 if scheme.signed else np.uint8)
    return torch.from_numpy(np.ascontiguousarray(plain))


def _ternary_codes(stream: np.ndarray) -> np.ndarray:
    """Turn bytes into the ternary digits that they hold."""
    if stream.size and stream.max() >= _TERNARY_CODES:
        raise ValueError(
            f"a byte of {stream.max()} does not hold five ternary values "
            f"(these give 0 to {_TERNARY_CODES - 1})."
        )
    # A table of the digits of each byte, looked up for all bytes at once.
    every = np.arange(_TERNARY_CODES)[:, None] // _PLACES % 3
    return every.astype(np.uint8)[stream].reshape(len(stream), -1)


def pack_nibbles(values: np.ndarray) -> np.ndarray:
    """Pack signed 4-bit values two to a byte, the first in the low half."""
    flat = values.reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8)
