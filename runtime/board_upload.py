"""Uploading a program to a board: memory segments and instructions, each read back and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.errors import DeviceError
from flightllm.spec.image import Program, Segment
from flightllm.spec.registers import CORE_REGISTERS, address

if TYPE_CHECKING:
    from flightllm.runtime.board import Link

__all__ = ["upload"]

BLOCK = 1 << 22
"""Bytes handed to a link at once: a progress bar moves, and no copy grows large."""
_PARAMS = next(r for r in CORE_REGISTERS if r.name == "MEMORY_ADDRESS").field("params")


def upload(link: Link, program: Program, progress: Callable[[int, int], None] | None) -> None:
    """Put a program into a device that is idle.

    Raises
    ------
    DeviceError
        When memory reads back otherwise than it was written; names core and segment or memory.
    """
    config = program.config
    sizes = [
        [max((s.base + s.size for s in program.segments if s.core == core), default=64)] * channels
        for core, channels in enumerate(config.channels)
    ]
    for core, bases in enumerate(link.reserve(sizes)):
        for channel, base in enumerate(bases):
            link.write(address("CHANNEL_BASE_LOW", channel, core), base & 0xFFFFFFFF)
            link.write(address("CHANNEL_BASE_HIGH", channel, core), base >> 32)
    total = sum(s.size * config.channels[s.core] for s in program.segments)
    done, digests = 0, []
    for segment in program.segments:
        digest = hashlib.sha256()
        data = None if segment.writable else program.data(segment)
        for channel in range(config.channels[segment.core]):
            for at in range(0, segment.size, BLOCK):
                size = min(BLOCK, segment.size - at)
                block = bytes(size) if data is None else data[channel, at : at + size].tobytes()
                link.put(segment.core, channel, segment.base + at, block)
                digest.update(block)
                done += size
                if progress is not None:
                    progress(done, total)
        digests.append(digest.digest())
    link.settle()
    for segment, expected in zip(program.segments, digests):
        _compare(link, segment, config.channels[segment.core], expected)
    for core, code in enumerate(program.cores):
        _write_words(link, core, 0, code.words, "instructions")
        _write_words(link, core, _PARAMS.mask, code.params, "parameters")


def _compare(link: Link, segment: Segment, channels: int, expected: bytes) -> None:
    found = hashlib.sha256()
    for channel in range(channels):
        for at in range(0, segment.size, BLOCK):
            size = min(BLOCK, segment.size - at)
            found.update(link.get(segment.core, channel, segment.base + at, size))
    if found.digest() != expected:
        raise DeviceError(
            f"{link.name}: segment {segment.name!r} of core {segment.core} reads back with another"
            " digest than it was written with"
        )


def _write_words(
    link: Link, core: int, start: int, words: NDArray[np.uint32] | Sequence[int], what: str
) -> None:
    place, data = address("MEMORY_ADDRESS", core=core), address("MEMORY_DATA", core=core)
    link.write(place, start)
    for word in words:
        link.write(data, int(word))
    link.write(place, start)
    for number, word in enumerate(words):
        found = link.read(data)
        if found != int(word):
            raise DeviceError(
                f"{link.name}: {what} of core {core}: word {number} reads back as {found:#010x},"
                f" not {int(word):#010x}"
            )
