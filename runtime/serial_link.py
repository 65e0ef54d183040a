"""Registers and memory of an accelerator at the other end of a serial line.

For boards without a processor or PCIe, such as the ULX3S. The protocol is `flightllm.spec.serial`;
a line is a file such as /dev/ttyUSB0, driven with the standard library alone.
"""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flightllm.runtime.device_lock import DeviceLock
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.serial import BEAT, MOST_BEATS, Command, check_byte, request

__all__ = ["Line", "SerialLink", "SerialPort"]

TRIES = 3
"""A request whose reply is late or fails its check is sent again so often in all."""


class Line(Protocol):
    """Bytes in both directions."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def read(self, size: int) -> bytes:
        """Receive bytes; fewer when the other side stays silent."""

    def clear(self) -> None:
        """Let a request that was cut short be forgotten by the other side, and its reply here."""

    def close(self) -> None:
        """Let go of the line."""


class SerialPort:
    """A serial device, raw, 8N1.

    Parameters
    ----------
    path : of the device. baud : a rate that the operating system names. silence : seconds.

    Raises
    ------
    DeviceError
        When it cannot be opened.
    InputError
        For a rate that there is not.
    """

    def __init__(self, path: Path, baud: int, silence: float = 1.0) -> None:
        rate = getattr(termios, f"B{baud}", None)
        if rate is None:
            raise InputError(f"baud: {baud} is not a rate of this system's serial ports")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"{path}: {error.strerror}") from None
        tty.setraw(self._file)
        settings = termios.tcgetattr(self._file)
        settings[4] = settings[5] = rate
        termios.tcsetattr(self._file, termios.TCSANOW, settings)
        self._silence = silence

    def write(self, data: bytes) -> None:
        """Send bytes; done when the line has them: the wait for a reply begins then."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        termios.tcdrain(self._file)

    def read(self, size: int) -> bytes:
        """Receive bytes; fewer when none come for `silence`."""
        out = b""
        while len(out) < size:
            if not select.select([self._file], [], [], self._silence)[0]:
                break
            out += os.read(self._file, size - len(out))
        return out

    def clear(self) -> None:
        """Wait until the other side has forgotten half a request; drop what came meanwhile."""
        time.sleep(0.1)
        termios.tcflush(self._file, termios.TCIOFLUSH)

    def close(self) -> None:
        """Let go of the line."""
        os.close(self._file)


class SerialLink:
    """An accelerator behind a line, as a `flightllm.runtime.board.Link`.

    Parameters
    ----------
    line : closed with the link. name : of the device. config : its hardware: one channel.

    Raises
    ------
    InputError
        When the hardware has more than one channel.
    DeviceError
        When another process has the device.
    """

    def __init__(self, line: Line, name: str, config: HwConfig) -> None:
        if sum(config.channels) != 1:
            raise InputError(f"channels: {config.channels}, a serial line reaches one channel")
        self.name, self._line, self._size = name, line, config.channel_bytes
        self._lock = DeviceLock(name)

    def read(self, offset: int) -> int:
        """A register."""
        return int.from_bytes(self._ask(request(Command.REGISTER_READ, offset), b"", 4), "little")

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        self._ask(request(Command.REGISTER_WRITE, offset, value), b"", 0)

    def reserve(self, sizes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The one channel's memory begins at 0."""
        need = sizes[0][0]
        if need > self._size:
            raise DeviceError(f"{self.name}: {need} bytes do not fit memory of {self._size}")
        return [[0]]

    def put(self, core: int, channel: int, address: int, data: bytes | memoryview) -> None:
        """Write memory; what shares a unit with the ends is read first."""
        start, end = address // BEAT * BEAT, -(-(address + len(data)) // BEAT) * BEAT
        whole = bytearray(end - start)
        if start != address:
            whole[:BEAT] = self.get(core, channel, start, BEAT)
        if end != address + len(data):
            whole[-BEAT:] = self.get(core, channel, end - BEAT, BEAT)
        whole[address - start : address - start + len(data)] = data
        for at in range(0, len(whole), BEAT * MOST_BEATS):
            part = bytes(whole[at : at + BEAT * MOST_BEATS])
            head = request(Command.MEMORY_WRITE, start + at, len(part) // BEAT - 1)
            self._ask(head, part, 0)

    def get(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read memory."""
        start, end = address // BEAT * BEAT, -(-(address + size) // BEAT) * BEAT
        out = b""
        for at in range(start, end, BEAT * MOST_BEATS):
            beats = min(end - at, BEAT * MOST_BEATS) // BEAT
            head = request(Command.MEMORY_READ, at, beats - 1)
            out += self._ask(head, b"", BEAT * beats)
        return out[address - start : address - start + size]

    def settle(self) -> None:
        """Each request is answered when it is done."""

    def pause(self, seconds: float) -> None:
        """A look over the line takes long enough."""

    def close(self) -> None:
        """Let go of the line and the device."""
        self._line.close()
        self._lock.release()

    def _ask(self, head: bytes, data: bytes, size: int) -> bytes:
        """Send a request and receive its reply of `size` bytes.

        A request does the same when it is sent twice, but for MEMORY_DATA's moving address: an
        upload is read back, so that a word too many is found.
        """
        for _ in range(TRIES):
            self._line.write(head + data)
            reply = self._line.read(size + 1)
            if len(reply) == size + 1 and reply[-1] == check_byte((head, data, reply[:-1])):
                return reply[:-1]
            self._line.clear()
        raise DeviceError(
            f"{self.name}: no sound reply to a request ({Command(head[0]).name.lower()}) in {TRIES}"
            " tries: is the board on this line, at this rate?"
        )
