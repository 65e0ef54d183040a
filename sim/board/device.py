"""A simulated card as a `pynq.Device`: the real Overlay, allocate and MMIO stand in front of it.

Host buffers and the card's memory are two things, as they are across PCIe: what is not flushed does
not arrive. What happens behind the registers is a `Bus`: the functional simulator or the RTL.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pynq
from pynq.buffer import PynqBuffer
from pynq.pl_server.xclbin_parser import XclBin

from flightllm.sim.board.xclbin import bank_names, configuration, make_xclbin
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import save_handoff

__all__ = ["BANK_OFFSET", "Bus", "SimulatedDevice", "write_bitstream"]

REGISTERS = 0x0180_0000
"""Address of the accelerator's registers; any would do, as long as it is not 0."""
BANK_OFFSET = 0x1000
"""Where the first buffer of a bank lies in it; not 0, so that a base that is ignored shows."""


class Bus(Protocol):
    """Registers and memory of a running design, at addresses of its own bus."""

    def read(self, offset: int) -> int:
        """A register."""

    def write(self, offset: int, value: int) -> None:
        """Write a register."""

    def store(self, address: int, data: bytes) -> None:
        """Write memory."""

    def fetch(self, address: int, size: int) -> bytes:
        """Read memory."""

    def close(self) -> None:
        """End the simulation."""


def bank_base(config: HwConfig, bank: int) -> int:
    """Address of a bank on a simulated card's bus."""
    return bank * config.channel_bytes


def write_bitstream(folder: Path, config: HwConfig) -> Path:
    """Write a simulated card's bitstream and its hand-over; gives the file."""
    path = folder / f"{config.name}.xclbin"
    bases = [bank_base(config, bank) for bank in range(sum(config.channels))]
    path.write_bytes(make_xclbin(config, REGISTERS, bases))
    save_handoff(path, config, bank_names(config), "flightllm simulation")
    return path


class _Memory:
    """One bank."""

    def __init__(self, device: SimulatedDevice, description: Any) -> None:
        self._device, self._description = device, description

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> PynqBuffer:
        """A buffer at the start of the bank, in place of the one before."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        room = self._description["size"] - size
        if room < 0:
            raise RuntimeError(f"{size} bytes do not fit bank {self._description['tag']}")
        base = self._description["base_address"] + min(BANK_OFFSET, room // 64 * 64)
        return PynqBuffer(
            shape, dtype, bo=(base,), device=self._device, device_address=base,
            buffer=bytearray(size), coherent=False,
        )  # fmt: skip


class SimulatedDevice(pynq.Device):  # type: ignore[misc]  # pynq is untyped
    """A card that is not there.

    Parameters
    ----------
    make_bus : makes the design of a configuration, when the card is programmed.
    tag : its name among all devices of this machine. name : its name in reports.
    """

    def __init__(self, make_bus: Callable[[HwConfig], Bus], tag: str, name: str = "") -> None:
        super().__init__(tag)
        self.name = name or tag
        self.capabilities = {"REGISTER_RW": True}
        self.timestamp = ""
        self.bus: Bus | None = None
        self._make_bus = make_bus

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> XclBin:
        """PYNQ's own parser."""
        return XclBin(bitfile_name)

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Become what the bitstream says."""
        self.close_bus()
        self.bus = self._make_bus(configuration(Path(bitstream.bitfile_name).read_bytes()))
        self.post_download(bitstream, parser)

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """There is no metadata cache."""

    def open_context(self, description: Any) -> int:
        """PYNQ asks for one before a driver touches registers."""
        return int(description["cu_index"])

    def _running(self) -> Bus:
        if self.bus is None:
            raise RuntimeError(f"{self.tag} is not programmed")
        return self.bus

    def read_registers(self, address: int, length: int) -> bytes:
        """Registers as bytes."""
        bus, base = self._running(), address - REGISTERS
        return b"".join(bus.read(base + at).to_bytes(4, "little") for at in range(0, length, 4))

    def write_registers(self, address: int, data: bytes) -> None:
        """Write registers."""
        raw, base = bytes(data), address - REGISTERS
        for at in range(0, len(raw), 4):
            self._running().write(base + at, int.from_bytes(raw[at : at + 4], "little"))

    def get_memory(self, description: Any) -> _Memory:
        """A bank, from the overlay's `mem_dict`."""
        return _Memory(self, description)

    def flush(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Host buffer to card."""
        self._running().store(bo[0] + offset, _host_bytes(pointer, size).tobytes())

    def invalidate(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Card to host buffer."""
        data = self._running().fetch(bo[0] + offset, size)
        _host_bytes(pointer, size)[:] = np.frombuffer(data, np.uint8)

    def close_bus(self) -> None:
        """End the simulation behind the registers."""
        if self.bus is not None:
            self.bus.close()
            self.bus = None


def _host_bytes(pointer: int, size: int) -> Any:
    """The host memory at an address, as PYNQ hands it to a device."""
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
