"""Packing: nothing is lost, and the layout is the one that is documented."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_stablequant.core.packing import (
    pack,
    packed_num_bytes,
    packed_words,
    unpack,
)
from speechbrain_stablequant.core.plan import QuantizationScheme


def scheme_of(bits, signed, symmetric=False):
    return QuantizationScheme(bits, symmetric, signed, narrow_range=False)


ODD = [QuantizationScheme(bits, levels="odd") for bits in range(1, 5)]
TERNARY = QuantizationScheme(2, levels="ternary")
INTEGER = st.builds(scheme_of, st.integers(1, 8), st.booleans(), st.booleans())


def random_values(scheme, channels, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.arange(scheme.qmin, scheme.qmax + 1, scheme.level_step)
    values = levels[
        torch.randint(len(levels), (channels, count), generator=generator)
    ]
    return values.to(torch.int8 if scheme.signed else torch.uint8)


def reference_words(row, scheme):
    """Value i at bits [i * b, (i + 1) * b) of little-endian 32-bit words."""
    stream = 0
    for i, value in enumerate(row.tolist()):
        offset = 2 ** (scheme.bits - 1) if scheme.signed else 0
        code = value + offset
        if scheme.is_odd or scheme.is_binary:
            code = (value + scheme.qmax) // 2
        stream |= code << (i * scheme.bits)
    words = -(-len(row) * scheme.bits // 32)
    data = stream.to_bytes(words * 4, "little")
    return [
        int.from_bytes(data[4 * i : 4 * i + 4], "little", signed=True)
        for i in range(words)
    ]


@given(
    scheme=INTEGER | st.sampled_from([*ODD, TERNARY]),
    channels=st.integers(1, 4),
    count=st.integers(1, 70),
    seed=st.integers(0, 1000),
)
def test_round_trip_is_exact(scheme, channels, count, seed):
    values = random_values(scheme, channels, count, seed)
    packed = pack(values, scheme)
    assert packed.dtype == torch.int32
    assert packed.shape == (channels, packed_words(count, scheme))
    scales = channels * (4 if scheme.symmetric else 5)
    size = packed_num_bytes((channels, count), scheme)
    assert packed.numel() * 4 + scales == size
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


@pytest.mark.parametrize("scheme", ODD, ids=lambda s: f"odd-{s.bits}")
def test_layout_of_odd_values_is_that_of_their_order(scheme):
    values = random_values(scheme, 3, 37)
    expected = [reference_words(row, scheme) for row in values]
    assert pack(values, scheme).tolist() == expected


def test_layout_of_ternary_values_is_five_digits_a_byte():
    values = random_values(TERNARY, 3, 43)
    packed = pack(values, TERNARY)
    assert packed.shape == (3, 3)  # 43 values, 9 bytes, 3 words
    for row, words in zip(values.tolist(), packed.numpy()):
        digits = [value + 1 for value in row] + [0] * 17
        expected = [
            sum(d * 3**i for i, d in enumerate(digits[start : start + 5]))
            for start in range(0, 60, 5)
        ]
        assert list(words.astype("<i4").tobytes()) == expected


@pytest.mark.parametrize("place", [0, 11])
@pytest.mark.parametrize("byte", [243, 255])
def test_bytes_that_are_no_ternary_digits_are_refused(byte, place):
    packed = pack(random_values(TERNARY, 3, 43), TERNARY)
    packed.view(torch.uint8)[1, place] = byte
    with pytest.raises(ValueError, match=f"byte of {byte}"):
        unpack(packed, 43, TERNARY)


def test_ternary_values_take_four_fifths_of_two_bits():
    assert packed_words(768, TERNARY) == 39
    assert packed_words(768, QuantizationScheme(2)) == 48


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


@pytest.mark.parametrize(
    "scheme",
    [*(scheme_of(bits, signed=True) for bits in range(1, 9)), *ODD, TERNARY],
    ids=lambda s: s.describe().replace(" ", "-"),
)
def test_a_word_too_many_or_too_few_is_refused(scheme):
    packed = pack(random_values(scheme, 2, 40), scheme)
    for wrong in (packed[:, :-1], torch.cat([packed, packed], dim=1)):
        with pytest.raises(ValueError, match="40 values"):
            unpack(wrong, 40, scheme)
