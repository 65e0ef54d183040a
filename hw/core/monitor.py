"""What a unit does, seen from its semaphores: running or waiting, and for what; its counters."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.core.registers import register_layout
from flightllm.hw.frontend import semaphore_signature
from flightllm.hw.sharing import shared
from flightllm.spec.isa import UNITS

__all__ = ["COUNTERS", "Counters", "UnitMonitor"]

COUNTERS = ("BUSY", "WAIT", "INSTRUCTIONS", "BEATS")
"""Of each unit; the registers are COUNT_BUSY and so on."""


class Counters(data.StructLayout):
    """A unit's counters."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(COUNTERS, 32))


@shared()
class UnitMonitor(wiring.Component):
    """Watches one unit; drives nothing of it.

    Parameters
    ----------
    beats : most beats that the unit moves in a cycle.

    Members
    -------
    semaphores : In, a copy of the unit's. missing : In, units that owe it a token.
    queued : In, an instruction is in its queue.
    fifo, read, write, cores : In, what the running instruction waits for in this cycle.
    beats : In, how many it moves in this cycle.
    reset : In, the unit is reset. clear : In, counters to 0. count : In, they count.
    running : Out, between an instruction's start and its end.
    started, ended : Out, pulses. waits : Out. counters : Out.
    """

    REASONS = ("fifo", "read", "write", "cores")

    def __init__(self, beats: int = 1) -> None:
        super().__init__({
            "semaphores": In(wiring.Signature({
                name: Out(member.shape) for name, member in semaphore_signature.members.items()
            })),
            "missing": In(len(UNITS)),
            "queued": In(1),
            **dict.fromkeys(self.REASONS, In(1)),
            "beats": In(range(beats + 1)),
            **dict.fromkeys(("reset", "clear", "count"), In(1)),
            **dict.fromkeys(("running", "started", "ended"), Out(1)),
            "waits": Out(register_layout("WAITS")),
            "counters": Out(Counters()),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        semaphores, waits = self.semaphores, self.waits
        m.d.comb += [
            self.started.eq(semaphores.waiting & semaphores.granted),
            self.ended.eq(semaphores.done),
            waits.tokens.eq(self.missing),
            waits.idle.eq(~self.running & ~self.queued),
        ]
        for reason in self.REASONS:
            m.d.comb += waits[reason].eq(self.running & getattr(self, reason))
        with m.If(self.started & ~self.reset):
            m.d.sync += self.running.eq(1)
        with m.Elif(self.ended | self.reset):
            m.d.sync += self.running.eq(0)
        held = Cat(waits[reason] for reason in self.REASONS).any()
        steps = {
            "BUSY": self.running,
            "WAIT": held | (~self.running & self.missing.any()),
            "INSTRUCTIONS": self.ended,
            "BEATS": self.beats,
        }
        for name, step in steps.items():
            counter, sum_ = self.counters[name], Signal(33, name=f"{name}_sum".lower())
            m.d.comb += sum_.eq(counter + step)
            with m.If(self.clear):
                m.d.sync += counter.eq(0)
            with m.Elif(self.count):
                m.d.sync += counter.eq(Mux(sum_[32], 0xFFFFFFFF, sum_))
        return m
