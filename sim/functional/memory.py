"""A core's channel memory, backed segment by segment.

Read-only segments stay where the program has them (memory-mapped from image.bin); writable ones are
zero at first, unless the program's image has one too. An access that leaves its segment or writes a
read-only one is an error: a program that does so would read or spoil something else on a board.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import row_shares
from flightllm.spec.image import Program, Segment

__all__ = ["CoreMemory", "Region"]

U8 = NDArray[np.uint8]
Index = NDArray[np.intp]


class Region:
    """The bytes of one segment.

    Members
    -------
    segment : its description. data : uint8 [channels, size].
    """

    __slots__ = ("data", "segment", "_mapped")

    def __init__(self, segment: Segment, data: U8) -> None:
        self.segment = segment
        base = data
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        self._mapped = base if isinstance(base, mmap.mmap) else None
        self.data = np.asarray(data)

    def drop(self) -> None:
        """Let go of the pages read so far; a mapped file is read again when it is needed."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._mapped.madvise(mmap.MADV_DONTNEED)


class CoreMemory:
    """The memory of one core, addressed in bytes of every channel.

    Parameters
    ----------
    program : brings the segments and their contents. core : which core this is.
    """

    def __init__(self, program: Program, core: int) -> None:
        self.core = core
        self.channels = program.config.channels[core]
        mine = sorted((s for s in program.segments if s.core == core), key=lambda s: s.base)
        for one, two in zip(mine, mine[1:]):
            if one.base + one.size > two.base:
                raise VerifyError(f"core {core}: segments {one.name} and {two.name} overlap")
        self._bases = [segment.base for segment in mine]
        self._regions = [
            Region(
                segment,
                np.zeros((self.channels, segment.size), np.uint8)
                if segment.writable and (core, segment.name) not in program.image
                else program.data(segment),
            )
            for segment in mine
        ]

    def find(self, address: int, size: int) -> tuple[Region, int]:
        """The region that holds [address, address + size), and the offset in it.

        Raises
        ------
        VerifyError
            When no segment holds all of it; names the address and the segment it starts in.
        """
        place = bisect_right(self._bases, address) - 1
        if place >= 0:
            region = self._regions[place]
            offset = address - region.segment.base
            if offset + size <= region.segment.size:
                return region, offset
        raise VerifyError(f"bytes {address} to {address + size} {self._outside(place, address)}")

    def find_writable(self, address: int, size: int) -> tuple[Region, int]:
        """As `find`, for a write; VerifyError also for a read-only segment."""
        region, offset = self.find(address, size)
        if not region.segment.writable:
            raise VerifyError(f"byte {address} lies in read-only segment {region.segment.name!r}")
        return region, offset

    def _outside(self, place: int, address: int) -> str:
        if place >= 0:
            segment = self._regions[place].segment
            if address < segment.base + segment.size:
                return f"run over the end {segment.base + segment.size} of {segment.name!r}"
        return "lie in no segment"

    # ------------------------------------------------------------------------- spread vectors

    def read_spread(self, address: int, count: int, kind: type[np.generic]) -> NDArray[np.generic]:
        """The spread vector of `count` elements of `kind` at a byte address."""
        widest, valid = _spread(count, self.channels)
        size = widest * np.dtype(kind).itemsize
        region, at = self.find(address, size)
        block = region.data[:, at : at + size].view(kind)
        out: NDArray[np.generic] = block.reshape(-1) if valid is None else block[valid]
        return out

    def write_spread(self, address: int, values: NDArray[np.float32]) -> None:
        """Write a spread vector of float32 words at a byte address."""
        widest, valid = _spread(len(values), self.channels)
        region, at = self.find_writable(address, 4 * widest)
        block = region.data[:, at : at + 4 * widest].view(np.uint32)
        bits = values.view(np.uint32)
        if valid is None:
            block[:] = bits.reshape(self.channels, -1)
        else:
            block[valid] = bits

    # ------------------------------------------------------------------------- byte strobes

    def write_bytes(self, address: int, size: int, channel: Index, offset: Index,
                    values: U8) -> None:  # fmt: skip
        """Write single bytes at `address` + offset, all within `size` bytes of the address."""
        region, at = self.find_writable(address, size)
        region.data[channel, at + offset] = values

    # ------------------------------------------------------------------------- host access

    def host_write(self, channel: int, address: int, data: bytes) -> None:
        """Write `data` into one channel."""
        region, at = self.find_writable(address, len(data))
        region.data[channel, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def host_read(self, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of one channel."""
        region, at = self.find(address, size)
        return region.data[channel, at : at + size].tobytes()


@lru_cache(maxsize=512)
def _spread(count: int, channels: int) -> tuple[int, NDArray[np.bool_] | None]:
    """Elements of the largest share, and which of [channels, largest] exist (None: all do)."""
    sizes = np.array([b - a for a, b in row_shares(count, channels)])
    widest = int(sizes.max())
    if (sizes == widest).all():
        return widest, None
    return widest, np.arange(widest) < sizes[:, None]
