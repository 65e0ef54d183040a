"""A run from start to its end: done, error, abort, or the watchdog."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["EVENTS", "RunControl"]

EVENTS = ("done", "error", "aborted")
CLEAR_CYCLES = 4
"""For which units are held in reset; the register of the reset takes one of them."""


class RunControl(wiring.Component):
    """Commands all cores alike.

    Parameters
    ----------
    cores : how many.

    Members
    -------
    start, abort, reset : In, pulses, the host's commands. watchdog : In, cycles, 0 for never.
    halted, failed, quiet, moving : In, bits of the cores, see `control_signature`.
    clear, forget, go, count, expired, stopped : Out, to the cores: `control_signature`'s
        clear, forget, start, count, expired, aborted.
    busy : Out, something is under way. status : Out, how the last run ended; occurred : Out, the
        same as pulses.
    core : Out, the core that failed first. cycles : Out, of the run.
    """

    def __init__(self, cores: int) -> None:
        events = data.StructLayout(dict.fromkeys(EVENTS, 1))
        super().__init__({
            **dict.fromkeys(("start", "abort", "reset"), In(1)), "watchdog": In(32),
            **dict.fromkeys(("halted", "failed", "quiet", "moving"), In(cores)),
            **dict.fromkeys(("clear", "forget", "go", "count", "expired", "stopped"), Out(1)),
            "busy": Out(1), "status": Out(events), "occurred": Out(events), "core": Out(8),
            "cycles": Out(64),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        held = Signal(range(CLEAR_CYCLES))
        starting, resetting, cancelled = Signal(), Signal(), Signal()
        ending = Signal(self.status.shape())
        failing = Signal()
        m.d.comb += failing.eq(self.failed.any())
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))
            with m.State("idle"):
                m.d.sync += [
                    held.eq(CLEAR_CYCLES - 1), ending.eq(0), starting.eq(0), resetting.eq(0),
                    cancelled.eq(0),
                ]  # fmt: skip
                with m.If(self.abort | self.reset):
                    m.d.sync += [ending.aborted.eq(~self.reset), resetting.eq(self.reset)]
                    m.next = "clear"
                with m.Elif(self.start):
                    m.d.sync += [self.status.eq(0), starting.eq(1)]
                    m.next = "clear"
            with m.State("clear"):
                m.d.comb += self.clear.eq(1)
                m.d.sync += held.eq(held - 1)
                with m.If(held == 0):
                    m.next = "drain"
            with m.State("drain"), m.If(self.quiet.all()):
                m.next = "end"
                with m.If(starting & ~cancelled):
                    m.d.comb += self.forget.eq(1)
                    m.next = "begin"
            with m.State("begin"):
                m.d.comb += self.go.eq(1)
                m.d.sync += [starting.eq(0), held.eq(CLEAR_CYCLES - 1)]
                m.next = "run"
            with m.State("run"):
                m.d.comb += self.count.eq(1)
                with m.If(cancelled):
                    m.d.comb += self.stopped.eq(1)
                    m.next = "clear"
                with m.Elif(failing):
                    # Said at once: a memory that never answers would keep `busy` up for ever.
                    m.d.comb += self.occurred.error.eq(1)
                    m.d.sync += self.status.error.eq(1)
                    m.next = "clear"
                with m.Elif(self.halted.all()):
                    m.d.sync += ending.done.eq(1)
                    m.next = "end"
            with m.State("end"):
                m.d.comb += self.occurred.eq(ending)
                m.d.sync += self.status.eq(self.status.as_value() | ending.as_value())
                m.next = "idle"
                with m.If(resetting):
                    m.d.comb += [self.occurred.eq(0), self.forget.eq(1)]
                    m.d.sync += self.status.eq(0)
        with m.If(self.busy & (self.abort | self.reset)):
            m.d.sync += [
                cancelled.eq(1), ending.aborted.eq(1), resetting.eq(resetting | self.reset),
            ]  # fmt: skip
        self._first(m, failing)
        self._time(m)
        return m

    def _first(self, m: Module, failing: Signal) -> None:
        """Which core stopped first."""
        with m.If(self.count & failing & ~self.stopped):
            for core in reversed(range(len(self.failed))):
                with m.If(self.failed[core]):
                    m.d.sync += self.core.eq(core)
        with m.If(self.go):
            m.d.sync += self.core.eq(0)

    def _time(self, m: Module) -> None:
        still = Signal(32)
        m.d.comb += self.expired.eq(
            self.count & (self.watchdog != 0) & (still == self.watchdog) & ~self.moving.any()
        )
        m.d.sync += still.eq(Mux(self.moving.any() | self.expired, 0, still + 1))
        with m.If(self.go):
            m.d.sync += [self.cycles.eq(0), still.eq(0)]
        with m.Elif(self.count):
            m.d.sync += self.cycles.eq(self.cycles + 1)
