"""Semaphores: a counter for each ordered pair of units."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import semaphore_signature
from flightllm.hw.sharing import shared
from flightllm.spec.isa import UNITS

__all__ = ["Semaphores"]

WIDTH = 8


@shared()
class Semaphores(wiring.Component):
    """Counts the tokens that each unit has released to each other and not yet taken.

    Members
    -------
    units : In, one semaphore port a unit, in the order of `spec.isa.Unit`.
    missing0, missing1, ... : Out, for each, the units that owe it a token that it waits for.
    clear : In, forgets all tokens (start of a run).
    overflow : Out, sticky: a counter would have passed 255, the program is wrong.
    """

    def __init__(self) -> None:
        ports = {f"unit{unit}": In(semaphore_signature) for unit in UNITS}
        absent = {f"missing{unit}": Out(len(UNITS)) for unit in UNITS}
        super().__init__({**ports, **absent, "clear": In(1), "overflow": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ports = [getattr(self, f"unit{unit}") for unit in UNITS]
        for unit in UNITS:
            port, missing = ports[unit], getattr(self, f"missing{unit}")
            for other in UNITS:
                if other == unit:
                    continue
                count = Signal(WIDTH, name=f"{other.name}_to_{unit.name}".lower())
                given, taken = Signal(), Signal()
                m.d.comb += [
                    given.eq(ports[other].done & ports[other].release[unit]),
                    taken.eq(port.waiting & port.granted & port.wait[other]),
                ]
                with m.If(self.clear):
                    m.d.sync += count.eq(0)
                with m.Elif(given & ~taken):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count.all()):
                        m.d.sync += [count.eq(count), self.overflow.eq(1)]
                with m.Elif(taken & ~given):
                    m.d.sync += count.eq(count - 1)
                m.d.comb += missing[other].eq(port.waiting & port.wait[other] & (count == 0))
            m.d.comb += port.granted.eq(port.waiting & ~missing.any())
        return m
