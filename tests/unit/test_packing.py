"""Packing: nothing is lost, and the layout is the one that is documented."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.packing import pack, packed_words, unpack
from speechbrain_stablequant.plan import QuantizationScheme


def scheme_of(bits, signed, symmetric=False):
    return QuantizationScheme(bits, symmetric, signed, narrow_range=False)


def random_values(scheme, channels, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, count)
    if scheme.is_binary:
        values = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    else:
        values = torch.randint(
            scheme.qmin, scheme.qmax + 1, shape, generator=generator
        )
    return values.to(torch.int8 if scheme.signed else torch.uint8)


def reference_words(row, scheme):
    """Value i at bits [i * b, (i + 1) * b) of little-endian 32-bit words."""
    stream = 0
    for i, value in enumerate(row.tolist()):
        offset = 2 ** (scheme.bits - 1) if scheme.signed else 0
        code = (value + 1) // 2 if scheme.is_binary else value + offset
        stream |= code << (i * scheme.bits)
    words = -(-len(row) * scheme.bits // 32)
    data = stream.to_bytes(words * 4, "little")
    return [
        int.from_bytes(data[4 * i : 4 * i + 4], "little", signed=True)
        for i in range(words)
    ]


@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    channels=st.integers(1, 4),
    count=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_round_trip_is_exact(bits, signed, symmetric, channels, count, seed):
    scheme = scheme_of(bits, signed, symmetric)
    values = random_values(scheme, channels, count, seed)
    packed = pack(values, scheme)
    assert packed.dtype == torch.int32
    assert packed.shape == (channels, packed_words(count, bits))
    back = unpack(packed, count, scheme)
    assert back.dtype == values.dtype
    assert torch.equal(back, values)


@pytest.mark.parametrize("signed", [True, False], ids=["int", "uint"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_a_little_endian_stream_of_bits(bits, signed):
    scheme = scheme_of(bits, signed)
    values = random_values(scheme, 3, 37)
    expected = [reference_words(row, scheme) for row in values]
    assert pack(values, scheme).tolist() == expected


def pack_to_int32(values, bits):
    """What compressed-tensors does for signed values: shift and add."""
    per_word = 32 // bits
    codes = (values.to(torch.int64) + 2 ** (bits - 1)) & (2**bits - 1)
    missing = -codes.shape[1] % per_word
    codes = torch.nn.functional.pad(codes, (0, missing))
    codes = codes.reshape(len(codes), -1, per_word)
    words = (codes << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("count", [1, 7, 8, 32, 33])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_equals_compressed_tensors(bits, count):
    scheme = scheme_of(bits, signed=True)
    values = random_values(scheme, 2, count)
    assert torch.equal(pack(values, scheme), pack_to_int32(values, bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_word_too_many_or_too_few_is_refused(bits):
    scheme = scheme_of(bits, signed=True)
    packed = pack(random_values(scheme, 2, 40), scheme)
    for wrong in (packed[:, :-1], torch.cat([packed, packed], dim=1)):
        with pytest.raises(ValueError, match="40 values"):
            unpack(wrong, 40, scheme)
