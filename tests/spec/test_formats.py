"""Matrix formats: packing against unpacking, and both against a reader that goes bit by bit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flightllm.spec.errors import InputError
from flightllm.spec.formats import (
    BLOCK,
    MatrixFormat,
    Second,
    Unpacked,
    block_bytes,
    chunk_bytes,
    format_for,
    kgroups_for,
    matrix_bytes,
    pack_matrix,
    row_shares,
    section_bytes,
    stream_bytes,
    unpack_matrix,
)
from flightllm.spec.quant import QuantTensor

NF4 = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
KINDS = ("plain", "minima", "zeros", "table")


def random_mask(rng: np.random.Generator, rows: int, columns: int, kept: int, private: bool
                ) -> NDArray[np.bool_]:  # fmt: skip
    """`kept` of every aligned 16 columns; rows 2i and 2i + 1 alike unless private."""
    blocks = -(-columns // 16)
    order = rng.random((rows, blocks, 16))
    order[:, -1, columns - 16 * (blocks - 1) :] = 2  # places that are not there come last
    mask = np.argsort(np.argsort(order, -1), -1) < kept
    mask = mask.reshape(rows, -1)[:, :columns]
    if not private:
        mask[1::2] = mask[0::2][: rows // 2]
    return mask


def random_tensor(seed: int, rows: int, columns: int, bits: int, group: int, kind: str = "plain",
                  kept: int = 16, private: bool = False) -> QuantTensor:  # fmt: skip
    """A tensor with every level its width has."""
    rng = np.random.default_rng(seed)
    shape, groups = (rows, columns), (rows, kgroups_for(columns, group))
    scales = rng.normal(0, 1, groups).astype(np.float16)
    minima = zeros = table = mask = None
    top = (1 << bits) - 1
    if kind == "table":
        table = NF4[:: 16 >> bits] if bits < 4 else NF4
        levels = np.asarray(table, np.int8)[rng.integers(0, len(table), shape)]
    elif kind == "zeros":
        zeros = rng.integers(0, min(top, 127) + 1, groups).astype(np.int8)
        wide = np.repeat(zeros.astype(int), group, 1)[:, :columns]
        levels = np.clip(rng.integers(0, top + 1, shape) - wide, -127, 127).astype(np.int8)
    else:
        least = max(-127, -(1 << (bits - 1)))
        levels = rng.integers(least, 1 << (bits - 1), shape).astype(np.int8)
        if kind == "minima":
            minima = rng.normal(0, 1, groups).astype(np.float16)
    if kept != 16:
        mask = random_mask(rng, rows, columns, kept, private)
        levels = np.where(mask, levels, 0).astype(np.int8)
    return QuantTensor(
        levels, scales, bits, group, minima, zeros, table, kept, mask, private and kept != 16
    )


def unpacked(tensor: QuantTensor, channels: int) -> Unpacked:
    rows, columns = tensor.shape
    kgroups = kgroups_for(columns, tensor.group)
    data = pack_matrix(tensor, channels)
    return unpack_matrix(format_for(tensor), data, rows, kgroups, table=tensor.table)


def check_round_trip(tensor: QuantTensor, channels: int) -> None:
    rows, columns = tensor.shape
    kgroups = kgroups_for(columns, tensor.group)
    fmt, data = format_for(tensor), pack_matrix(tensor, channels)
    assert [len(part) for part in data] == stream_bytes(fmt, rows, kgroups, channels)
    assert max(map(len, data)) == matrix_bytes(fmt, rows, kgroups, channels)
    assert all(len(part) % 64 == 0 and part.dtype == np.uint8 for part in data)
    got = unpacked(tensor, channels)
    assert got.levels.shape == (rows, kgroups * tensor.group)
    assert np.array_equal(got.levels[:, :columns], tensor.levels)
    if tensor.zeros is None and tensor.table is None:
        assert not got.levels[:, columns:].any()
    assert got.scales is not None
    assert np.array_equal(got.scales, tensor.scales.astype(np.float32))
    if tensor.minima is None:
        assert got.second is None
    else:
        assert got.second is not None
        assert np.array_equal(got.second, tensor.minima.astype(np.float32))
    if tensor.mask is None:
        assert got.kept is None
    else:
        assert got.kept is not None
        assert np.array_equal(got.kept[:, :columns], tensor.mask)
        assert (got.kept.reshape(rows, -1, 16).sum(-1) == tensor.kept).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("channels", range(1, 12))
def test_round_trip_of_every_width_group_and_channel_count(
    bits: int, group: int, channels: int
) -> None:
    check_round_trip(random_tensor(bits, 41, 2 * group + 24, bits, group), channels)


@st.composite
def tensors(draw: st.DrawFn) -> QuantTensor:
    bits, group = draw(st.integers(2, 8)), draw(st.sampled_from([32, 64, 128]))
    kind = draw(st.sampled_from(KINDS if bits <= 4 else KINDS[:-1]))
    kept = draw(st.sampled_from([16, 16, 2, 4, 8]))
    columns = draw(st.integers(1, 300)) if kept == 16 else 16 * draw(st.integers(1, 18))
    seed, rows = draw(st.integers(0, 99)), draw(st.integers(1, 70))
    return random_tensor(seed, rows, columns, bits, group, kind, kept, draw(st.booleans()))


@given(tensors(), st.integers(1, 11))
def test_round_trip_of_any_tensor(tensor: QuantTensor, channels: int) -> None:
    check_round_trip(tensor, channels)


@pytest.mark.parametrize("kept", [2, 4, 8])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_of_sparse_tensors(kept: int, private: bool, kind: str) -> None:
    for rows, columns, channels in ((33, 160, 3), (16, 64, 1), (1, 48, 2), (50, 40, 2)):
        tensor = random_tensor(rows, rows, columns, 4, 64, kind, kept, private)
        if columns % 16:  # a part of 16 columns keeps what it has
            data = unpacked(tensor, channels)
            assert np.array_equal(data.levels[:, :columns], tensor.levels)
        else:
            check_round_trip(tensor, channels)


def test_extreme_values_survive() -> None:
    for bits in (2, 4, 8):
        least, most = max(-127, -(1 << (bits - 1))), (1 << (bits - 1)) - 1
        tensor = random_tensor(0, 6, 64, bits, 32)
        levels = np.tile(np.array([least, most], np.int8), (6, 32))
        scales = np.array([[65504, -65504], [6e-8, 0], [-0.0, 1]] * 2, np.float16)
        check_round_trip(replace(tensor, levels=levels, scales=scales, minima=scales), 2)


# ------------------------------------------------------------------------------ a slow reader


class Bits:
    """A stream of bytes as little-endian bits."""

    def __init__(self, data: Sequence[int]) -> None:
        self.data = [int(byte) for byte in data]

    def read(self, at: int, count: int) -> int:
        picked = [self.data[i // 8] >> i % 8 & 1 for i in range(at, at + count)]
        return sum(bit << i for i, bit in enumerate(picked))


class SlowMatrix:
    """What the documentation of `flightllm.spec.formats` says, one number at a time."""

    def __init__(self, fmt: MatrixFormat, rows: int, kgroups: int, table: Sequence[int] | None):
        self.fmt, self.table = fmt, table
        self.levels = np.zeros((rows, kgroups * fmt.group), int)
        self.scales = np.zeros((rows, kgroups))
        self.second = np.zeros((rows, kgroups))

    def level(self, code: int, zero: int) -> int:
        if self.table is not None:
            return self.table[code]
        if self.fmt.second == Second.ZERO:
            return code - zero
        sign = 1 << (self.fmt.bits - 1)
        return (code ^ sign) - sign

    def places(self, chunk: Bits, base: int, slot: int, row: int) -> list[int]:
        """Columns within the group whose codes are stored."""
        group, kept = self.fmt.group, self.fmt.kept
        if kept == 16:
            return list(range(group))
        owner = 2 * slot + row if self.fmt.private else slot
        if not self.fmt.indices:
            begin = 8 * base + owner * group
            return [k for k in range(group) if chunk.read(begin + k, 1)]
        per = group * kept // 16
        begin = 8 * base + 4 * owner * per
        return [16 * (i // kept) + chunk.read(begin + 4 * i, 4) for i in range(per)]

    def take(self, chunk: Bits, slot: int, rows: Sequence[int], group: int) -> None:
        """Pair-group `slot` of a chunk holds `group` of these rows."""
        fmt = self.fmt
        scale, second, index, _ = section_bytes(fmt)
        for side, row in enumerate(rows):
            def number(section: int, kind: str, side: int = side) -> float:
                at = 8 * (section + 4 * slot + 2 * side)
                raw = struct.pack("<H", chunk.read(at, 16))
                return float(struct.unpack(kind, raw)[0])

            if row >= len(self.levels):
                continue
            zero = 0
            if scale:
                self.scales[row, group] = number(0, "<e")
            if fmt.second == Second.ZERO:
                zero = int(number(scale, "<h"))
            elif second:
                self.second[row, group] = number(scale, "<e")
            codes = 8 * (scale + second + index) + slot * 2 * fmt.codes_per_group * fmt.bits
            for j, place in enumerate(self.places(chunk, scale + second, slot, side)):
                order = 2 * j + side
                if fmt.bytewise:
                    order = 4 * (j // 2) + 2 * side + j % 2
                code = chunk.read(codes + order * fmt.bits, fmt.bits)
                self.levels[row, group * fmt.group + place] = self.level(code, zero)


def slow_blocked(fmt: MatrixFormat, data: Sequence[NDArray[np.uint8]], rows: int, kgroups: int,
                 table: Sequence[int] | None = None) -> SlowMatrix:  # fmt: skip
    out, size = SlowMatrix(fmt, rows, kgroups, table), chunk_bytes(fmt)
    for (start, stop), part in zip(row_shares(rows, len(data)), data):
        turn = 0
        for block in range(start, stop, 16):
            for group in range(kgroups):
                for row in range(block, min(block + 16, stop), 2):
                    chunk = Bits(part[turn // 16 * size :][:size])
                    pair = [row, row + 1 if row + 1 < stop else rows]
                    out.take(chunk, turn % 16, pair, group)
                    turn += 1
    return out


def assert_same(slow: SlowMatrix, fast: Unpacked) -> None:
    assert np.array_equal(slow.levels, fast.levels)
    if fast.scales is not None:
        assert np.array_equal(slow.scales.astype(np.float32), fast.scales)
    if fast.second is not None:
        assert np.array_equal(slow.second.astype(np.float32), fast.second)


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "group", "kind", "kept", "private", "channels"),
    [
        (37, 70, 3, 32, "plain", 16, False, 3),
        (20, 128, 4, 64, "minima", 16, False, 1),
        (18, 64, 5, 32, "zeros", 16, False, 2),
        (9, 128, 4, 128, "table", 16, False, 2),
        (21, 96, 4, 32, "plain", 8, False, 2),
        (22, 64, 2, 64, "table", 4, True, 1),
        (19, 64, 8, 32, "minima", 2, False, 2),
        (6, 48, 6, 32, "zeros", 2, True, 1),
    ],
)
def test_blocked_layout_is_as_documented(
    rows: int, columns: int, bits: int, group: int, kind: str, kept: int, private: bool,
    channels: int,
) -> None:  # fmt: skip
    tensor = random_tensor(5, rows, columns, bits, group, kind, kept, private)
    fmt, data = format_for(tensor), pack_matrix(tensor, channels)
    kgroups = kgroups_for(columns, group)
    slow = slow_blocked(fmt, data, rows, kgroups, tensor.table)
    assert np.array_equal(slow.levels[:, :columns], tensor.levels)
    assert_same(slow, unpack_matrix(fmt, data, rows, kgroups, table=tensor.table))


def test_slow_reader_sees_a_planted_bit() -> None:
    """Every flipped bit of a section's used part changes what the slow reader finds."""
    tensor = random_tensor(1, 32, 32, 3, 32, "minima")
    fmt, (data,) = format_for(tensor), pack_matrix(tensor, 1)
    good = slow_blocked(fmt, [data], 32, 1)
    for at in (0, 2, 63, 64, 127, 128, 200, len(data) - 1):
        bad = data.copy()
        bad[at] ^= 4
        found = slow_blocked(fmt, [bad], 32, 1)
        same = [
            np.array_equal(getattr(good, name), getattr(found, name), equal_nan=True)
            for name in ("scales", "second", "levels")
        ]
        assert same == [at >= 64, not 64 <= at < 128, at < 128]


@given(tensors(), st.integers(1, 4), st.data())
def test_unpacking_sees_a_planted_bit(
    tensor: QuantTensor, channels: int, data: st.DataObject
) -> None:
    rows, columns = tensor.shape
    if tensor.mask is not None or tensor.table is not None or tensor.zeros is not None:
        tensor = random_tensor(3, rows, tensor.group, tensor.bits, tensor.group)
    rows, columns = tensor.shape
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    levels = tensor.levels.copy()
    levels[row, column] ^= 1
    other = pack_matrix(replace(tensor, levels=levels), channels)
    flipped = [
        int(np.unpackbits(a ^ b).sum()) for a, b in zip(pack_matrix(tensor, channels), other)
    ]
    assert sum(flipped) >= 1
    kgroups = kgroups_for(columns, tensor.group)
    found = unpack_matrix(format_for(tensor), other, rows, kgroups, table=tensor.table)
    assert np.argwhere(found.levels != unpacked(tensor, channels).levels).tolist() == [
        [row, column]
    ]


# ------------------------------------------------------------------------------ cyclic, whole


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (32, 2), (70, 3), (200, 5), (65, 11)])
@pytest.mark.parametrize(("first", "start"), [(0, 0), (3, 4), (7, 13)])
def test_cyclic_layout_is_as_documented(
    bits: int, rows: int, channels: int, first: int, start: int
) -> None:
    fmt = MatrixFormat(bits, 48, second=Second.EMIT, cyclic=True, bytewise=bits == 4)
    rng = np.random.default_rng(rows)
    blocks, size = -(-rows // BLOCK), chunk_bytes(fmt)
    chunks = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    scales = rng.normal(0, 1, (blocks, size // 2)).astype(np.float16)
    chunks[:, :128] = scales.view(np.uint8)[:, :128]
    data: list[list[NDArray[np.uint8]]] = [[] for _ in range(channels)]
    for block, chunk in enumerate(chunks):
        data[(first + block + start) % channels].append(chunk)
    streams = [np.concatenate([np.zeros(0, np.uint8), *part]) for part in data]
    assert list(map(len, streams)) == stream_bytes(fmt, rows, 1, channels, first, start)
    slow = SlowMatrix(fmt, rows, 1, None)
    for block, chunk in enumerate(chunks):
        bits_of = Bits(chunk)
        for slot in range(16):
            row = BLOCK * block + 2 * slot
            slow.take(bits_of, slot, [row, row + 1], 0)
    assert_same(slow, unpack_matrix(fmt, streams, rows, 1, first, start))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (2, 3), (16, 2), (33, 2)])
@pytest.mark.parametrize("channels", [1, 2, 5, 11])
def test_whole_layout_is_as_documented(bits: int, rows: int, blocks: int, channels: int) -> None:
    fmt = MatrixFormat(bits, BLOCK, scale=False, whole=True)
    rng = np.random.default_rng(rows)
    data = [
        rng.integers(0, 256, size, dtype=np.uint8)
        for size in stream_bytes(fmt, rows, blocks, channels)
    ]
    got = unpack_matrix(fmt, data, rows, blocks)
    assert got.scales is got.second is got.kept is None
    assert got.levels.shape == (rows, blocks * BLOCK)
    for (start, stop), part in zip(row_shares(rows, channels), data):
        size = block_bytes(fmt, stop - start)
        for block in range(blocks if stop > start else 0):
            bits_of = Bits(part[block * size :][:size])
            for row in range(start, stop):
                pair, side = divmod(row - start, 2)
                for token in range(BLOCK):
                    code = bits_of.read((64 * pair + 2 * token + side) * bits, bits)
                    sign = 1 << (bits - 1)
                    assert got.levels[row, block * BLOCK + token] == (code ^ sign) - sign


# ------------------------------------------------------------------------------ words and sizes


@given(
    st.builds(
        MatrixFormat, st.integers(2, 8), st.integers(1, 16).map(lambda n: 16 * n), st.booleans(),
        st.sampled_from(list(Second)), st.sampled_from([2, 4, 8, 16]), st.booleans(),
        st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    )
)  # fmt: skip
def test_format_word_round_trip(fmt: MatrixFormat) -> None:
    assert MatrixFormat.from_word(fmt.word) == fmt
    assert 0 <= fmt.word < 1 << 20


def test_format_words_of_old_programs_keep_their_meaning() -> None:
    """The word is in compiled programs: a changed layout needs another program version."""
    assert MatrixFormat(4, 128).word == 0x284
    assert MatrixFormat(3, 64, second=Second.MINIMUM, table=True).word == 0x80643
    sparse = MatrixFormat(4, 32, kept=2, private=True, indices=True)
    assert sparse.word == 0x4 | 2 << 4 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 15
    assert MatrixFormat(8, 64, second=Second.EMIT, cyclic=True).word == 0x20E48


@pytest.mark.parametrize(
    ("values", "named"),
    [({"bits": 1}, "bits: 1"), ({"bits": 9}, "bits: 9"), ({"group": 0}, "group: 0"),
     ({"group": 40}, "group: 40"), ({"group": 272}, "group: 272"), ({"kept": 3}, "kept: 3")],
)  # fmt: skip
def test_impossible_formats(values: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=f"format {named} is not"):
        MatrixFormat(**{"bits": 4, "group": 32, **values})


@pytest.mark.parametrize("word", [0, 1 << 20 | 0x284, 0x281, 0x04, 0x1F4])
def test_impossible_format_words(word: int) -> None:
    with pytest.raises(InputError, match="format"):
        MatrixFormat.from_word(word)


@given(st.integers(0, 5000), st.integers(1, 64))
def test_row_shares_are_even_whole_pairs(rows: int, channels: int) -> None:
    shares = row_shares(rows, channels)
    assert len(shares) == channels and shares[0][0] == 0 and shares[-1][1] == rows
    assert all(a[1] == b[0] for a, b in zip(shares, shares[1:]))
    pairs = [-(-(b - a) // 2) for a, b in shares]
    assert max(pairs) - min(pairs) <= 1
    assert all(a % 2 == 0 for a, b in shares if b > a)


def test_sizes_are_what_the_sections_say() -> None:
    """16 pair-groups of 4-bit codes with fp16 scales: 4.5 bits a weight at group 32."""
    fmt = MatrixFormat(4, 32)
    assert section_bytes(fmt) == (64, 0, 0, 512)
    assert 8 * chunk_bytes(fmt) / (32 * 32) == 4.5
    assert 8 * chunk_bytes(MatrixFormat(3, 128)) / (32 * 128) == 3.125
    shared, private = (MatrixFormat(4, 128, kept=8, private=p) for p in (False, True))
    dense = chunk_bytes(MatrixFormat(4, 128))
    assert dense / chunk_bytes(shared) == pytest.approx(1.57, abs=0.01)
    assert dense / chunk_bytes(private) == pytest.approx(1.32, abs=0.01)


def test_levels_without_a_code_are_refused() -> None:
    plain = random_tensor(0, 4, 32, 4, 32)
    wrong = plain.levels.copy()
    wrong[1, 3] = 8
    table = replace(random_tensor(0, 4, 32, 4, 32, "table"), table=tuple(range(16)))
    zeros = replace(plain, zeros=np.full((4, 1), 15, np.int8), levels=np.full((4, 32), 1, np.int8))
    for tensor in (replace(plain, levels=wrong), table, zeros):
        with pytest.raises(InputError, match="a weight's level has no code of 4 bits"):
            pack_matrix(tensor, 1)


def test_a_pruned_weight_needs_no_code() -> None:
    """0 is in no table here, and no code is stored for what the mask drops."""
    levels = tuple(level or 1 for level in NF4)
    tensor = random_tensor(0, 8, 64, 4, 32, kept=8)
    kept = np.asarray(levels, np.int8)[np.arange(512).reshape(8, 64) % 16]
    masked = np.where(tensor.mask, kept, 0).astype(np.int8)
    check_round_trip(replace(tensor, levels=masked, table=levels), 2)


def test_a_table_is_needed_to_decode_table_codes() -> None:
    tensor = random_tensor(0, 4, 32, 4, 32, "table")
    with pytest.raises(InputError, match="code table"):
        unpack_matrix(format_for(tensor), pack_matrix(tensor, 1), 4, 1)


def test_contradictory_tensors_are_refused() -> None:
    plain = random_tensor(0, 4, 32, 4, 32)
    one = np.zeros((4, 1), np.int8)
    for values, named in (
        ({"zeros": one, "minima": plain.scales}, "zeros"),
        ({"zeros": one, "table": NF4}, "zeros"),
        ({"bits": 3, "table": NF4}, "table"),
        ({"kept": 8}, "mask"),
        ({"bits": 9}, "bits"),
        ({"group": 16}, "group"),
        ({"minima": plain.scales[:2]}, "minima"),
    ):
        with pytest.raises(ValueError, match=named):
            replace(plain, **values)  # type: ignore[arg-type]
