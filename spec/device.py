"""The Device protocol: what the runtime asks of a simulator or a board, and host access."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.formats import row_shares
from flightllm.spec.image import Program, Segment
from flightllm.spec.isa import Register

__all__ = [
    "Device", "RunResult", "check_program", "memory_sha256", "read_row", "write_row",
]  # fmt: skip


@dataclass(frozen=True)
class RunResult:
    """What one run of an entry point cost.

    Members
    -------
    cycles : core cycles, None where the executor knows no time.
    counters : performance counters by name ("mv.busy", ...), as far as the executor has them.
    """

    cycles: int | None = None
    counters: Mapping[str, int] = field(default_factory=dict)


class Device(Protocol):
    """An accelerator, simulated or real. Addresses are bytes in one channel of one core."""

    name: str
    config: HwConfig

    def load(self, program: Program) -> None:
        """Take a program: check it is for this hardware, upload it, clear the writable segments."""

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        """Write `data` to the memory of a channel."""

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of the memory of a channel."""

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        """Run every core from an entry point to its halt; registers not named start at 0."""

    def close(self) -> None:
        """Give the device back."""


def check_program(config: HwConfig, program: Program) -> None:
    """Refuse a program that was made for other hardware, naming the field, or has no weights."""
    difference = config.difference(program.config.to_dict())
    if difference:
        raise InputError(f"program and device differ in {difference}; compile it for this board")
    if program.shape_only:
        raise InputError(
            f"{program.model.name} is a shape without weights: it compiles but cannot run"
        )


def write_row(device: Device, segment: Segment, row: int, values: NDArray[np.generic]) -> None:
    """Write a spread vector of 4-byte elements into row `row` of a table segment.

    Raises
    ------
    ValueError
        When elements have another size or the vector does not lie inside the segment.
    """
    shares = row_shares(len(values), device.config.channels[segment.core])
    if values.dtype.itemsize != 4:
        raise ValueError(f"{segment.name}: elements of {values.dtype.itemsize} bytes, expected 4")
    _check_row(segment, row, shares)
    for channel, (a, b) in enumerate(shares):
        if b > a:
            address = segment.base + row * segment.row
            device.write(segment.core, channel, address, values[a:b].tobytes())


def read_row(device: Device, segment: Segment, row: int, count: int,
             dtype: type[np.generic] = np.float32) -> NDArray[np.generic]:  # fmt: skip
    """Read a spread vector of `count` 4-byte elements from row `row` of a table segment.

    Raises
    ------
    ValueError
        When the vector does not lie inside the segment.
    """
    parts = []
    shares = row_shares(count, device.config.channels[segment.core])
    _check_row(segment, row, shares)
    for channel, (a, b) in enumerate(shares):
        address = segment.base + row * segment.row
        parts.append(device.read(segment.core, channel, address, 4 * (b - a)))
    return np.frombuffer(b"".join(parts), dtype)


def _check_row(segment: Segment, row: int, shares: list[tuple[int, int]]) -> None:
    size = 4 * max(b - a for a, b in shares)
    if size > segment.row or not 0 <= row * segment.row <= segment.size - segment.row:
        raise ValueError(
            f"{segment.name}: row {row} of {size} bytes does not lie in {segment.size} bytes "
            f"of rows of {segment.row}"
        )


def memory_sha256(device: Device, program: Program) -> str:
    """SHA-256 over the writable segments: core by core, channel by channel, in address order."""
    total = hashlib.sha256()
    for core, channels in enumerate(program.config.channels):
        mine = [s for s in program.segments if s.core == core and s.writable]
        for channel in range(channels):
            for segment in sorted(mine, key=lambda s: s.base):
                total.update(device.read(core, channel, segment.base, segment.size))
    return total.hexdigest()
