"""The cycle model as a `flightllm.spec.device.Device`: bits of the functional one, and time."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping

from flightllm.sim.cycle.machine import TimedMachine, Tracer
from flightllm.sim.cycle.memory import PlainMemory
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import HwConfig
from flightllm.spec.device import RunResult
from flightllm.spec.dram import DramTiming, dram_timing
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.image import Program
from flightllm.spec.isa import Register
from flightllm.spec.trace import TraceRecord

__all__ = ["CycleDevice"]


class CycleDevice:
    """Executes programs to the bit where they have weights, and says how long they take.

    Parameters
    ----------
    config : the hardware whose programs it takes.
    trace : called with a `TraceRecord` for each executed instruction.
    memory : a plain memory in place of the configuration's own.
    efficiency : of the device memory, see `flightllm.spec.dram.dram_timing`.
    dram : a memory's banks in place of the configuration's.
    began : cycles before the first run, in which the memory was refreshed.
    """

    name = "cycle"

    def __init__(self, config: HwConfig, *, trace: Tracer | None = None,
                 memory: PlainMemory | None = None, efficiency: float | None = None,
                 dram: DramTiming | None = None, began: int = 0) -> None:  # fmt: skip
        self.config, self.trace, self._began = config, trace, began
        self._dram = dram or (None if memory else dram_timing(config, efficiency))
        self._memory = memory or PlainMemory(config.memory.latency_cycles)
        self._noted: dict[tuple[int, str], deque[TraceRecord]] = {}
        self._bits: FunctionalDevice | None = None
        self._machine: TimedMachine | None = None

    def load(self, program: Program) -> None:
        """Take a program; one without weights runs in time alone.

        Raises
        ------
        InputError
            When it was made for other hardware.
        VerifyError
            When its code or its segments are wrong.
        """
        difference = self.config.difference(program.config.to_dict())
        if difference:
            raise InputError(
                f"program and device differ in {difference}; compile it for this board"
            )
        self._bits = None
        if not program.shape_only:
            note = self._note if self.trace is not None else None
            self._bits = FunctionalDevice(self.config, trace=note)
            self._bits.load(program)
        self._machine = TimedMachine(program, self._dram, self._memory)
        self._machine.now = float(self._began)

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        """Write `data` to the memory of a channel; nothing happens where there are no bits."""
        if self._loaded() and self._bits is not None:
            self._bits.write(core, channel, address, data)

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of the memory of a channel; zeros where there are no bits."""
        if self._loaded() and self._bits is not None:
            return self._bits.read(core, channel, address, size)
        return bytes(size)

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        """Run every core from an entry point to its halt.

        Returns
        -------
        RunResult
            Cycles; counters of each unit, summed over cores: "mv.instructions", "mv.busy".

        Raises
        ------
        VerifyError
            For a fault of the program, a deadlock among them. Load the program again after it.
        """
        machine = self._loaded()
        try:
            if self._bits is not None:
                self._bits.run(entry, registers)
            machine.tracer = self._merged if self.trace is not None else None
            cycles, counters = machine.run(
                entry, {int(name): value for name, value in registers.items()}
            )
        except VerifyError:
            self.close()
            raise
        return RunResult(cycles, counters)

    def close(self) -> None:
        """Let go of the program."""
        self._bits, self._machine = None, None

    def _loaded(self) -> TimedMachine:
        if self._machine is None:
            raise InputError("no program is loaded: call load(program) first")
        return self._machine

    def _note(self, record: TraceRecord) -> None:
        """Keep what the functional simulator wrote until its time is known."""
        self._noted.setdefault((record.core, record.unit), deque()).append(record)

    def _merged(self, record: TraceRecord) -> None:
        """A unit executes in order, so its records of both kinds come in the same order."""
        assert self.trace is not None
        noted = self._noted.get((record.core, record.unit))
        if noted:
            record = dataclasses.replace(record, writes=noted.popleft().writes)
        self.trace(record)
