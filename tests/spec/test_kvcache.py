"""The places of KV elements agree with what the formats decode."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec import kvcache
from flightllm.spec.formats import block_bytes, chunk_bytes, row_shares, unpack_matrix

CHANNELS = st.integers(1, 5)
BITS = st.sampled_from([4, 8])


def _code(level: int, mask: int) -> int:
    return {0xFF: level & 255, 0x0F: level & 15, 0xF0: (level & 15) << 4}[mask]


@given(CHANNELS, st.sampled_from([8, 16, 48]), BITS, st.integers(0, 100), st.integers(0, 6))
def test_a_key_code_lies_where_the_decoder_looks(
    channels: int, size: int, bits: int, pos: int, start: int
) -> None:
    fmt = kvcache.key_format(size, bits)
    blocks = pos // 32 + 1
    memory = np.zeros((channels, blocks * chunk_bytes(fmt)), np.uint8)
    element = pos % size
    channel, offset, mask = kvcache.key_places(fmt, pos, element, channels, start)
    memory[channel, offset] = _code(-3, int(mask))
    at = kvcache.key_scale_places(fmt, pos, channels, start)
    for place, value in zip(at[1:], (0.5, 0.25)):
        memory[at[0], place : place + 2] = np.float16(value).reshape(1).view(np.uint8)
    chunks = memory.reshape(channels, blocks, -1)
    data = [
        np.concatenate([memory[c, :0], *(
            chunks[c, b // channels] for b in range(blocks) if (b + start) % channels == c
        )])
        for c in range(channels)
    ]  # fmt: skip
    found = unpack_matrix(fmt, data, blocks * 32, 1, 0, start)
    want = np.zeros((blocks * 32, fmt.group), np.int8)
    want[pos, element] = -3
    assert np.array_equal(found.levels, want)
    assert found.scales is not None and found.second is not None
    assert found.scales[pos, 0] == 0.5 and found.second[pos, 0] == 0.25
    assert np.count_nonzero(found.scales) == np.count_nonzero(found.second) == 1


@given(CHANNELS, st.sampled_from([7, 8, 20, 64]), BITS, st.integers(0, 100))
def test_a_value_code_lies_where_the_decoder_looks(
    channels: int, size: int, bits: int, pos: int
) -> None:
    fmt = kvcache.value_format(bits)
    blocks = pos // 32 + 1
    shares = [b - a for a, b in row_shares(size, channels)]
    memory = np.zeros((channels, blocks * block_bytes(fmt, shares[0])), np.uint8)
    element = pos % size
    channel, offset, mask = kvcache.value_places(fmt, size, pos, element, channels)
    memory[channel, offset] = _code(-3, int(mask))
    data = [memory[c, : blocks * block_bytes(fmt, share)] for c, share in enumerate(shares)]
    want = np.zeros((size, blocks * 32), np.int8)
    want[element, pos] = -3
    assert np.array_equal(unpack_matrix(fmt, data, size, blocks).levels, want)


@given(CHANNELS, st.sampled_from([7, 20]), st.integers(0, 100))
def test_strobes_of_four_bit_codes_cover_every_element_once(
    channels: int, size: int, pos: int
) -> None:
    value, key = kvcache.value_format(4), kvcache.key_format(size, 4)
    levels = (np.arange(key.group) % 15 - 7).astype(np.int8)
    positions = np.array([pos])
    for places, (channel, offset), data in (
        (kvcache.key_places(key, pos, np.arange(key.group), channels, 1),
         kvcache.key_strobes(key, positions, channels, 1), kvcache.key_bytes(key, levels)),
        (kvcache.value_places(value, size, pos, np.arange(size), channels),
         kvcache.value_strobes(value, size, positions, channels),
         kvcache.value_bytes(value, levels[:size])),
    ):  # fmt: skip
        by_byte: dict[tuple[int, int], int] = {}
        for level, c, at, mask in zip(levels.tolist(), *(part.tolist() for part in places)):
            assert not by_byte.get((c, at), 0) & mask
            by_byte[c, at] = by_byte.get((c, at), 0) | _code(level, mask)
        strobed = zip(np.broadcast_to(channel, offset.shape)[0].tolist(), offset[0].tolist())
        assert dict(zip(strobed, data.tolist())) == by_byte
