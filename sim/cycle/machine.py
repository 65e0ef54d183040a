"""All cores in time: which unit's work is looked at next, and where cores meet.

Every instruction's start follows from what is known already: words in its queue, tokens given, the
unit's last instruction. So instructions are looked at in the order of their starts; two kinds,
matrices and stores, are worked on in pieces, so that their accesses to memory fall between those of
others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from flightllm.sim.cycle.core import SHARED, CoreTime, Started
from flightllm.sim.cycle.memory import WINDOW, PlainMemory
from flightllm.spec import timing
from flightllm.spec.dram import DramTiming
from flightllm.spec.errors import VerifyError
from flightllm.spec.image import Program
from flightllm.spec.isa import UNITS, Unit
from flightllm.spec.trace import TraceRecord

__all__ = ["TimedMachine"]

PIECE = 256.0
"""Cycles that a matrix goes on for at least before others are looked at, where none stores."""

Tracer = Callable[[TraceRecord], None]


class TimedMachine:
    """All cores of a program, without arithmetic.

    Parameters
    ----------
    program : may be a shape without weights. dram : of the memory, None for a plain one like
        `memory`.
    """

    def __init__(
        self, program: Program, dram: DramTiming | None, memory: PlainMemory
    ) -> None:
        self.cores = [CoreTime(program, i, dram, memory) for i in range(len(program.cores))]
        self.now = 0.0
        self.tracer: Tracer | None = None

    def run(self, entry: str, registers: Mapping[int, int]) -> tuple[int, dict[str, int]]:
        """Cycles from an entry point to the last core's halt, and the counters by name.

        Raises
        ------
        VerifyError
            When the program stands still.
        """
        begin = self.now
        for core in self.cores:
            core.begin(entry, registers, begin)
        while not all(core.halted is not None for core in self.cores):
            if not self._step() and not self._meet():
                waiting = [core.stuck() for core in self.cores if core.halted is None]
                raise VerifyError("deadlock: " + "; ".join(waiting))
        self.now = max(core.halted or 0.0 for core in self.cores) + 1
        counters: dict[str, int] = {}
        for number, unit in enumerate(UNITS):
            name = unit.name.lower()
            states = [core.units[number] for core in self.cores]
            counters[f"{name}.instructions"] = sum(state.executed for state in states)
            counters[f"{name}.busy"] = round(sum(state.busy for state in states))
        return round(self.now - begin), counters

    def _step(self) -> bool:
        """Look at one core's earliest work, as long as there is any; whether there was."""
        moved = False
        for core in self.cores:
            while core.halted is None and self._advance(core):
                moved = True
        return moved

    def _advance(self, core: CoreTime) -> bool:
        """The core's earliest work; False where it can do nothing alone."""
        moved = core.dispatch()
        best, second, chosen = math.inf, math.inf, -1
        for number, unit in enumerate(core.units):
            running = unit.running
            if running is not None:
                if self._apart(core, number):
                    continue
                at = running.now
            else:
                ready = core.ready(number)
                if ready is None:
                    continue
                at = ready
            if at < best:
                best, second, chosen = at, best, number
            elif at < second:
                second = at
        if chosen < 0:
            return core.try_halt() or moved
        if core.units[chosen].running is None:
            core.start(chosen, best)
        running = core.units[chosen].running
        assert running is not None
        until = best + (WINDOW if core.units[Unit.ST].running is not None else PIECE)
        self._work(core, chosen, running, until if chosen == Unit.LD else max(second, until))
        return True

    def _apart(self, core: CoreTime, number: int) -> bool:
        """The running instruction waits for other cores, or for the engine."""
        running = core.units[number].running
        assert running is not None
        if number == Unit.LD:
            return core.blocked
        return number == Unit.SYS and running.step.kind.name in SHARED

    def _work(self, core: CoreTime, number: int, running: Started, limit: float) -> None:
        if core.work(number, limit):
            self._trace(core, running)

    # ------------------------------------------------------------------------ between cores

    def _meet(self) -> bool:
        """Let the cores go on that all stand at a gather or barrier; whether they did."""
        runs = [core.units[Unit.SYS].running for core in self.cores]
        if any(run is None or run.step.kind.name not in SHARED for run in runs):
            return False
        present = [run for run in runs if run is not None]
        for core, run in zip(self.cores, present):
            if run.step.kind.name != present[0].step.kind.name:
                raise VerifyError(
                    f"{core.where}, word {run.step.address}: core 0 is at "
                    f"{present[0].step.kind.name} instead of {run.step.kind.name}"
                )
        if present[0].step.kind.name == "sys.gather":
            messages = [
                core.messages(run.step, run.values) for core, run in zip(self.cores, present)
            ]
            after = timing.gather_cycles(messages)
        else:
            after = [timing.BARRIER] * len(present)
        met = max(run.start for run in present)
        for core, run, cycles in zip(self.cores, present, after):
            core.finish(Unit.SYS, met + cycles)
            self._trace(core, run)
        return True

    def _trace(self, core: CoreTime, run: Started) -> None:
        if self.tracer is None:
            return
        named: dict[str, Any] = dict(run.step.named(run.values))
        self.tracer(TraceRecord(
            core.number, run.step.unit.name.lower(), run.step.address, run.step.kind.name, named,
            round(run.start - timing.GRANT), round(run.now),
        ))  # fmt: skip
