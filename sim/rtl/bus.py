"""The Verilated hardware behind registers and memory alone: what a simulated card holds.

See `flightllm.sim.board.device.Bus`. Time passes while a host looks at STATUS: a poll is so many
cycles of the design, or as many as it takes until the interrupt.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.rtl.device import design_of
from flightllm.sim.rtl.library import build_library
from flightllm.sim.rtl.simulation import MemoryModel, Simulation, Stop
from flightllm.spec.config import HwConfig
from flightllm.spec.registers import DEVICE_REGISTERS, address

__all__ = ["RtlBus"]

CYCLES_A_LOOK = 5_000
_BUSY = next(r for r in DEVICE_REGISTERS if r.name == "STATUS").field("busy").mask
_STATUS = address("STATUS")


class RtlBus:
    """A design's registers and memory.

    Parameters
    ----------
    config : the design. cache : of built designs; the user's when left out.
    traced : build it with its trace ports, as executors with a trace do.
    optimise : see `build_library`.

    Members
    -------
    memory : uint8 [channels of all cores, bytes of a channel]. sim : the simulation.
    """

    def __init__(self, config: HwConfig, cache: Path | None = None, traced: bool = False,
                 optimise: str = "-O2") -> None:  # fmt: skip
        self.config = config
        rows, size = sum(config.channels), config.channel_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        room = mmap.mmap(-1, rows * size, flags)
        self.memory: NDArray[np.uint8] = np.frombuffer(room, np.uint8).reshape(rows, size)
        library = build_library(design_of(config, traced), False, cache, None, optimise)
        model = MemoryModel(latency=config.memory.latency_cycles, clock_mhz=config.clock_mhz)
        bases = [channel * size for channel in range(rows)]
        self.sim = Simulation(library, list(self.memory), bases, model)

    def read(self, offset: int) -> int:
        """A register; a look at STATUS takes time."""
        value = self.sim.read(offset)
        if offset == _STATUS and value & _BUSY:
            self._pass_time()
            value = self.sim.read(offset)
        return value

    def _pass_time(self) -> None:
        end = self.sim.cycle + CYCLES_A_LOOK
        while self.sim.run(end - self.sim.cycle) is Stop.EVENT:
            for _ in self.sim.events():  # of a design with trace ports; nobody asks for them here
                pass

    def write(self, offset: int, value: int) -> None:
        """Write a register."""
        self.sim.write(offset, value)

    def store(self, address: int, data: bytes) -> None:
        """Write memory."""
        row, at = divmod(address, self.config.channel_bytes)
        self.memory[row, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def fetch(self, address: int, size: int) -> bytes:
        """Read memory."""
        row, at = divmod(address, self.config.channel_bytes)
        return self.memory[row, at : at + size].tobytes()

    def close(self) -> None:
        """End the simulation."""
        self.sim.close()
