"""The host link over a serial line: requests and replies byte by byte, for boards without a bus.

A request is a command and its numbers, little-endian; then the bytes of a write. The reply is the
bytes of a read, then one check byte: the XOR of every byte of the request and of the reply before
it, and `CHECK`. A request that is cut short is dropped after `IDLE_BYTES` byte times of silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

__all__ = ["BAUD", "BEAT", "CHECK", "Command", "IDLE_BYTES", "MOST_BEATS", "check_byte", "request"]

BAUD = 1_000_000
"""Bits a second; 8 data bits, no parity, one stop bit."""
BEAT = 16
"""Bytes of a unit of memory; addresses of memory are multiples of it."""
MOST_BEATS = 256
"""Units of one request at most."""
CHECK = 0xA5
"""Makes an idle or stuck line fail the check."""
IDLE_BYTES = 64


class Command(IntEnum):
    """First byte of a request, and what follows it."""

    REGISTER_READ = 0x52
    """2 bytes address; replies 4 bytes."""
    REGISTER_WRITE = 0x57
    """2 bytes address, 4 bytes value."""
    MEMORY_READ = 0x72
    """4 bytes address, 1 byte beats - 1; replies that many beats."""
    MEMORY_WRITE = 0x77
    """4 bytes address, 1 byte beats - 1, that many beats."""


NUMBERS = {
    Command.REGISTER_READ: (2,),
    Command.REGISTER_WRITE: (2, 4),
    Command.MEMORY_READ: (4, 1),
    Command.MEMORY_WRITE: (4, 1),
}
"""Bytes of each number behind the command."""


def request(command: Command, *numbers: int) -> bytes:
    """The bytes of a request but for data."""
    sizes = NUMBERS[command]
    assert len(sizes) == len(numbers)
    return bytes([command]) + b"".join(
        number.to_bytes(size, "little") for number, size in zip(numbers, sizes)
    )


def check_byte(parts: Iterable[bytes]) -> int:
    """The last byte of a reply, from all bytes of the request and the reply before it."""
    out = CHECK
    for part in parts:
        for byte in part:
            out ^= byte
    return out
