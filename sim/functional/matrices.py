"""Matrices on their way from memory to the arrays: what LD.stream pushes and what is made of it.

A stream of a read-only segment is a reference, decoded once and kept; one of a writable segment
(the KV cache) is a copy of the bytes as they were when LD read them, decoded when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.memory import CoreMemory, Region
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import (
    BLOCK,
    MatrixFormat,
    Unpacked,
    block_bytes,
    chunk_bytes,
    row_shares,
    stream_bytes,
    unpack_matrix,
)
from flightllm.spec.image import Segment

__all__ = ["MatrixCache", "Stream", "format_of"]

U8 = NDArray[np.uint8]
_NOWHERE = Region(Segment("nothing", 0, 0, 0, False), np.zeros((1, 0), np.uint8))


@lru_cache(maxsize=256)
def format_of(word: int) -> MatrixFormat:
    """The format of a format word; InputError when it is none."""
    return MatrixFormat.from_word(word & 0xFFFFFFFF)


@lru_cache(maxsize=1024)
def _stream_sizes(word: int, rows: int, kgroups: int, channels: int) -> list[int]:
    return stream_bytes(format_of(word), rows, kgroups, channels)


@dataclass(frozen=True)
class Stream:
    """One entry of the weight FIFO.

    Members
    -------
    address, rows, kgroups, word, first, start : operands of LD.stream, the address in bytes.
    size : bytes, of the channel that has most. region, offset : where the bytes lie.
    data : their copy, uint8 per channel (all blocks in order as one array for cyclic formats); None
        where the segment is read-only.
    """

    address: int
    rows: int
    kgroups: int
    word: int
    first: int
    start: int
    size: int
    region: Region
    offset: int
    data: list[U8] | None

    @classmethod
    def read(cls, memory: CoreMemory, address: int, rows: int, kgroups: int, word: int, first: int,
             start: int) -> Stream:  # fmt: skip
        """Read a matrix as LD.stream does.

        Raises
        ------
        VerifyError
            When part of it lies outside the segment of its address.
        InputError
            When `word` is no format.
        """
        fmt = format_of(word)
        if rows == 0:  # a core that has no share of this matrix
            return cls(address, rows, kgroups, word, first, start, 0, _NOWHERE, 0, None)
        if rows < 0 or kgroups < 1 or first < 0:
            raise VerifyError(f"rows {rows}, kgroups {kgroups}, first {first}: no matrix")
        if fmt.cyclic:
            region, offset, data = _read_cyclic(memory, address, fmt, rows, first, start)
            size = -(-data[0].nbytes // memory.channels)
        elif fmt.whole:
            region, offset, data = _read_whole(memory, address, fmt, rows, kgroups, first)
            size = data[0].nbytes
        else:
            sizes = _stream_sizes(word, rows, kgroups, memory.channels)
            size = max(sizes)
            region, offset = memory.find(address, size)
            data = _slices(region, offset, sizes)
        if not region.segment.writable:
            return cls(address, rows, kgroups, word, first, start, size, region, offset, None)
        copied = [part.copy() for part in data]
        return cls(address, rows, kgroups, word, first, start, size, region, offset, copied)

    def bytes(self, channels: int) -> list[U8]:
        """What each channel streamed, or the joined blocks of a cyclic matrix."""
        if self.data is not None:
            return self.data
        fmt, region, offset = format_of(self.word), self.region, self.offset
        if fmt.cyclic:
            return [_cyclic_blocks(region, offset, fmt, self.rows, self.first, self.start)]
        sizes = stream_bytes(fmt, self.rows, self.kgroups, channels)
        if not fmt.whole:
            return _slices(region, offset, sizes)
        return _whole_slices(region, offset, fmt, self.rows, self.kgroups, self.first)

    def decode(self, channels: int, table: Sequence[int] | None) -> Unpacked:
        """The matrix, levels [rows, kgroups * group]."""
        fmt = format_of(self.word)
        data = self.bytes(channels)
        if fmt.cyclic:
            return unpack_matrix(fmt, data, self.rows, 1, table=table)
        return unpack_matrix(fmt, data, self.rows, self.kgroups, self.first, self.start, table)


def _slices(region: Region, offset: int, sizes: Sequence[int]) -> list[U8]:
    return [region.data[c, offset : offset + size] for c, size in enumerate(sizes)]


def _cyclic_blocks(region: Region, offset: int, fmt: MatrixFormat, rows: int, first: int,
                   start: int) -> U8:  # fmt: skip
    """The chunks of blocks `first` and on, in order, as one array."""
    channels, size = len(region.data), chunk_bytes(fmt)
    block = np.arange(first, first - (-rows // BLOCK))
    slots = int(block[-1]) // channels + 1
    chunks = region.data[:, offset : offset + slots * size].reshape(channels, slots, size)
    out: U8 = chunks[(block + start) % channels, block // channels].reshape(-1)
    return out


def _read_cyclic(memory: CoreMemory, address: int, fmt: MatrixFormat, rows: int, first: int,
                 start: int) -> tuple[Region, int, list[U8]]:  # fmt: skip
    slots = (first - (-rows // BLOCK) - 1) // memory.channels + 1
    region, offset = memory.find(address, slots * chunk_bytes(fmt))
    return region, offset, [_cyclic_blocks(region, offset, fmt, rows, first, start)]


def _whole_slices(region: Region, offset: int, fmt: MatrixFormat, rows: int, kgroups: int,
                  first: int) -> list[U8]:  # fmt: skip
    out = []
    for c, (a, b) in enumerate(row_shares(rows, len(region.data))):
        size = block_bytes(fmt, b - a)
        begin = offset + first * size
        out.append(region.data[c, begin : begin + kgroups * size])
    return out


def _read_whole(memory: CoreMemory, address: int, fmt: MatrixFormat, rows: int, kgroups: int,
                first: int) -> tuple[Region, int, list[U8]]:  # fmt: skip
    a, b = row_shares(rows, memory.channels)[0]
    region, offset = memory.find(address, (first + kgroups) * block_bytes(fmt, b - a))
    return region, offset, _whole_slices(region, offset, fmt, rows, kgroups, first)


class MatrixCache:
    """Decoded read-only matrices of one core.

    Parameters
    ----------
    channels : of the core. budget : bytes to keep at most; what is beyond is decoded at each use.
    """

    def __init__(self, channels: int, budget: int) -> None:
        self._channels = channels
        self._budget = budget
        self._held: dict[tuple[int, ...], Unpacked] = {}

    def get(self, stream: Stream, table: Sequence[int] | None) -> Unpacked:
        """The decoded matrix of a stream."""
        if stream.data is not None:
            return stream.decode(self._channels, table)
        key = (stream.address, stream.rows, stream.kgroups, stream.word, stream.first, stream.start,
               *(table or ()))  # fmt: skip
        found = self._held.get(key)
        if found is None:
            found = stream.decode(self._channels, table)
            stream.region.drop()
            size = sum(
                0 if part is None else part.nbytes
                for part in (found.levels, found.scales, found.second, found.kept)
            )
            if size <= self._budget:
                self._budget -= size
                self._held[key] = found
        return found
