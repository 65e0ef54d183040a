"""The functional simulator as a `flightllm.spec.device.Device`: bits, no time."""

from __future__ import annotations

from collections.abc import Mapping

from flightllm.sim.functional.machine import Machine, Tracer
from flightllm.spec.config import HwConfig
from flightllm.spec.device import RunResult, check_program
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.image import Program
from flightllm.spec.isa import Register

__all__ = ["FunctionalDevice"]


class FunctionalDevice:
    """Executes programs to the bit.

    Parameters
    ----------
    config : the hardware whose programs it takes.
    seed : None lets LD run as far ahead as semaphores allow; a number picks a random legal order
        of units and arbitrary initial buffer contents, which must not change any result.
    trace : called with a `TraceRecord` for each executed instruction.
    cache_bytes : decoded weights to keep in memory at most; others are decoded at each use.
    """

    name = "functional"

    def __init__(self, config: HwConfig, *, seed: int | None = None, trace: Tracer | None = None,
                 cache_bytes: int = 6 << 30) -> None:  # fmt: skip
        self.config = config
        self.trace = trace
        self._seed = seed
        self._cache_bytes = cache_bytes
        self._machine: Machine | None = None

    def load(self, program: Program) -> None:
        """Take a program.

        Raises
        ------
        InputError
            When it was made for other hardware or carries no weights.
        VerifyError
            When its code or its segments are wrong.
        """
        check_program(self.config, program)
        self._machine = Machine(program, self._seed, self._cache_bytes)

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        """Write `data` to the memory of a channel; VerifyError outside a writable segment."""
        self._loaded().cores[core].state.memory.host_write(channel, address, data)

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of the memory of a channel; VerifyError outside a segment."""
        return self._loaded().cores[core].state.memory.host_read(channel, address, size)

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        """Run every core from an entry point to its halt.

        Returns
        -------
        RunResult
            No cycles; counters: instructions executed by each unit.

        Raises
        ------
        VerifyError
            For a fault of the program, a deadlock among them. Load the program again after it.
        """
        machine = self._loaded()
        machine.tracer = self.trace
        try:
            counters = machine.run(entry, {int(name): value for name, value in registers.items()})
        except VerifyError:
            self._machine = None
            raise
        return RunResult(None, counters)

    def close(self) -> None:
        """Let go of the program."""
        self._machine = None

    def _loaded(self) -> Machine:
        if self._machine is None:
            raise InputError("no program is loaded: call load(program) first")
        return self._machine
