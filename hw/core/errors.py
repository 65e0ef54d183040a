"""Remembers the first thing that went wrong in a core, and where."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.core.registers import register_layout
from flightllm.hw.sharing import shared
from flightllm.spec.isa import UNITS
from flightllm.spec.registers import ErrorCode

__all__ = ["DISPATCHER", "ErrorLatch", "Fault"]

DISPATCHER = 15
"""The field `unit` of ERROR for what no unit met."""


class Fault(data.StructLayout):
    """One kind of error in this cycle: whether, why, which unit, which channel."""

    def __init__(self) -> None:
        super().__init__({"valid": 1, "code": ErrorCode, "unit": 4, "channel": 8})


@shared()
class ErrorLatch(wiring.Component):
    """Keeps the first fault, the lowest number of several, until `clear`.

    Parameters
    ----------
    faults : how many kinds. address_bits : of a word of the program.

    Members
    -------
    faults : In, of this cycle. addresses : In, of each unit's instruction, then the dispatcher's.
    clear : In. failed : Out, sticky, from the cycle after the fault.
    error : Out, the register ERROR. address : Out, ERROR_ADDRESS.
    """

    def __init__(self, faults: int, address_bits: int) -> None:
        super().__init__({
            "faults": In(data.ArrayLayout(Fault(), faults)),
            "addresses": In(data.ArrayLayout(address_bits, len(UNITS) + 1)),
            "clear": In(1), "failed": Out(1),
            "error": Out(register_layout("ERROR")), "address": Out(32),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        first, some = Signal(Fault()), Signal()
        faults = [self.faults[k] for k in range(self.faults.shape().length)]
        for fault in reversed(faults):
            with m.If(fault.valid):
                m.d.comb += first.eq(fault)
        m.d.comb += some.eq(Cat(fault.valid for fault in faults).any())
        places = Array(self.addresses[unit] for unit in UNITS)
        nowhere = first.unit == DISPATCHER
        with m.If(self.clear):
            m.d.sync += [self.failed.eq(0), self.error.eq(0), self.address.eq(0)]
        with m.Elif(some & ~self.failed):
            m.d.sync += [
                self.failed.eq(1), self.error.code.eq(first.code), self.error.unit.eq(first.unit),
                self.error.channel.eq(first.channel),
                self.address.eq(Mux(nowhere, self.addresses[len(UNITS)], places[first.unit])),
            ]  # fmt: skip
        return m
