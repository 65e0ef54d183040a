"""Registers and memory of an accelerator through PYNQ, on whatever device PYNQ drives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pynq

from flightllm.runtime.device_lock import DeviceLock
from flightllm.runtime.pynq_driver import AcceleratorDriver, find_driver
from flightllm.spec.errors import DeviceError, FlightError
from flightllm.spec.handoff import Handoff

__all__ = ["BufferMemory", "ChannelMemory", "PynqLink", "RemoteBufferMemory", "failing"]

SPIN_SECONDS = 0.001
"""A run that takes longer than this is polled with pauses."""
LONGEST_PAUSE = 0.02
SMALL = 4096
"""Bytes up to which a remote board's memory is reached word by word, not by its whole buffer."""


@contextmanager
def failing(name: str, what: str) -> Iterator[None]:
    """Turn whatever a driver raises into a `DeviceError` that says whose fault and doing what."""
    try:
        yield
    except FlightError:
        raise
    except Exception as error:  # pynq, XRT and gRPC raise types of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DeviceError(f"{name}: {what} failed: {reason}") from error


class ChannelMemory(Protocol):
    """The reserved memory of one channel."""

    @property
    def base(self) -> int:
        """Its address on the bus."""

    def put(self, address: int, data: bytes | memoryview) -> None:
        """Write at `address` bytes from the base."""

    def get(self, address: int, size: int) -> bytes:
        """Read at `address` bytes from the base."""

    def settle(self) -> None:
        """Return when everything `put` has arrived."""

    def started(self) -> None:
        """The accelerator may write from now on."""

    def free(self) -> None:
        """Give it back."""


class BufferMemory:
    """A `pynq.allocate` buffer of which slices can be moved: local boards, Alveo, simulation."""

    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.base = int(buffer.device_address)

    def put(self, address: int, data: bytes | memoryview) -> None:
        part = self._buffer[address : address + len(data)]
        part[:] = np.frombuffer(data, np.uint8)
        part.flush()

    def get(self, address: int, size: int) -> bytes:
        part = self._buffer[address : address + size]
        part.invalidate()
        return bytes(part.tobytes())

    def settle(self) -> None:
        pass

    def started(self) -> None:
        pass

    def free(self) -> None:
        self._buffer.freebuffer()


class RemoteBufferMemory:
    """A buffer on a board at the other end of PYNQ's gRPC, which moves buffers only as a whole.

    The upload is collected in the local copy and sent once; what a run needs is small and goes
    through MMIO to the buffer's physical address.
    """

    def __init__(self, buffer: Any, device: pynq.Device) -> None:
        self._buffer = buffer
        self.base = int(buffer.device_address)
        self._mmio = pynq.MMIO(self.base, buffer.nbytes, device=device)
        self._collecting = True  # until the upload is complete
        self._stale = False  # the board may hold something else than the local copy

    @staticmethod
    def _small(address: int, size: int) -> bool:
        return size <= SMALL and address % 4 == 0 and size % 4 == 0

    def put(self, address: int, data: bytes | memoryview) -> None:
        part = slice(address, address + len(data))
        if not self._collecting and self._small(address, len(data)):
            self._mmio.write(address, bytes(data))
            self._buffer[part] = np.frombuffer(data, np.uint8)
            return
        self._refresh()
        self._buffer[part] = np.frombuffer(data, np.uint8)
        if not self._collecting:
            self._buffer.flush()

    def get(self, address: int, size: int) -> bytes:
        self.settle()
        if self._stale and self._small(address, size):
            words = [self._mmio.read(at) for at in range(address, address + size, 4)]
            return np.array(words, "<u4").tobytes()
        self._refresh()
        return bytes(np.asarray(self._buffer[address : address + size]).tobytes())

    def settle(self) -> None:
        if self._collecting:
            self._buffer.flush()
            self._collecting, self._stale = False, True  # what arrived is what shall be read back

    def started(self) -> None:
        self._stale = not self._collecting

    def free(self) -> None:
        self._buffer.freebuffer()

    def _refresh(self) -> None:
        if self._stale:
            self._buffer.invalidate()
            self._stale = False


class PynqLink:
    """An accelerator in an overlay, as a `flightllm.runtime.board.Link`.

    Parameters
    ----------
    device : PYNQ's device. bitstream, handoff : what to program it with.

    Raises
    ------
    DeviceError
        When the device is in use, cannot be programmed, or holds no accelerator afterwards.
    """

    def __init__(self, device: pynq.Device, bitstream: Path, handoff: Handoff) -> None:
        self.name = str(getattr(device, "name", None) or device.tag)
        self._device, self._names = device, handoff.memories
        self._channels: list[list[ChannelMemory]] = []
        self._lock = DeviceLock(str(device.tag))
        try:
            with failing(self.name, f"programming {bitstream.name}"):
                self._overlay = pynq.Overlay(str(bitstream.resolve()), device=device)
            with failing(self.name, "finding the accelerator"):
                self._driver: AcceleratorDriver = find_driver(self._overlay, self.name)
        except BaseException:
            self._lock.release()
            raise

    def read(self, offset: int) -> int:
        with failing(self.name, f"reading register {offset:#x}"):
            return int(self._driver.read(offset))

    def write(self, offset: int, value: int) -> None:
        for memories in self._channels:
            for memory in memories:
                memory.started()
        with failing(self.name, f"writing register {offset:#x}"):
            self._driver.write(offset, value)

    def reserve(self, sizes: Sequence[Sequence[int]]) -> list[list[int]]:
        self._free()
        names = iter(self._names)
        for core, wanted in enumerate(sizes):
            self._channels.append([])
            for channel, size in enumerate(wanted):
                what = f"allocating {size} bytes for channel {channel} of core {core}"
                with failing(self.name, what):
                    self._channels[core].append(self._allocate(next(names), size))
        return [[memory.base for memory in memories] for memories in self._channels]

    def put(self, core: int, channel: int, address: int, data: bytes | memoryview) -> None:
        with failing(self.name, f"writing channel {channel} of core {core}"):
            self._channels[core][channel].put(address, data)

    def get(self, core: int, channel: int, address: int, size: int) -> bytes:
        with failing(self.name, f"reading channel {channel} of core {core}"):
            return self._channels[core][channel].get(address, size)

    def settle(self) -> None:
        with failing(self.name, "writing memory"):
            for memories in self._channels:
                for memory in memories:
                    memory.settle()

    def pause(self, seconds: float) -> None:
        interrupt = self._driver.interrupt
        if interrupt is not None and hasattr(interrupt, "wait"):
            loop = asyncio.get_event_loop()
            with suppress(asyncio.TimeoutError):
                loop.run_until_complete(asyncio.wait_for(interrupt.wait(), LONGEST_PAUSE))
        elif seconds > SPIN_SECONDS:
            time.sleep(min(seconds / 50, LONGEST_PAUSE))

    def close(self) -> None:
        self._free()
        self._lock.release()

    def _allocate(self, name: str, size: int) -> ChannelMemory:
        remote = self._device.has_capability("REMOTE")
        target = self._device
        if name and not remote:  # PYNQ's remote devices have one memory
            if name not in self._overlay.mem_dict:
                raise DeviceError(
                    f"{self.name}: the bitstream has no memory {name!r}, only"
                    f" {', '.join(self._overlay.mem_dict) or 'none'}"
                )
            target = self._device.get_memory(self._overlay.mem_dict[name])
        buffer = pynq.allocate((size,), np.uint8, target=target)
        return RemoteBufferMemory(buffer, self._device) if remote else BufferMemory(buffer)

    def _free(self) -> None:
        channels, self._channels = self._channels, []
        for memories in channels:
            for memory in memories:
                memory.free()
