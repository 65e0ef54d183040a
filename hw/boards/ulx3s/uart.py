"""A serial line, 8 data bits, no parity, one stop bit: receiver and transmitter."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["Receiver", "Transmitter"]

BITS = 10
"""Of a byte on the line: start, eight from the lowest on, stop."""


class Receiver(wiring.Component):
    """Bytes from a line.

    Parameters
    ----------
    divisor : clock cycles of a bit, at least 4.

    Members
    -------
    line : In. o : Out, a byte a transfer; one that is not taken before the next is lost.
    """

    def __init__(self, divisor: int) -> None:
        assert divisor >= 4
        self._divisor = divisor
        super().__init__({"line": In(1, init=1), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules += FFSynchronizer(self.line, line, init=1)
        timer = Signal(range(2 * self._divisor))
        left = Signal(range(BITS + 1))
        bits = Signal(8)
        broken = Signal()  # the line stays low: no byte begins before it was high again
        with m.If(line):
            m.d.sync += broken.eq(0)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(left == 0), m.If(~line & ~broken):  # look at the middle of each bit
            m.d.sync += [left.eq(BITS), timer.eq(self._divisor // 2 - 1)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self._divisor - 1), left.eq(left - 1)]
            with m.If((left == BITS) & line):  # no start bit, a glitch
                m.d.sync += left.eq(0)
            with m.Elif(left == 1):
                m.d.sync += [self.o.payload.eq(bits), self.o.valid.eq(line), broken.eq(~line)]
            with m.Elif(left != BITS):
                m.d.sync += bits.eq(Cat(bits[1:], line))
        return m


class Transmitter(wiring.Component):
    """Bytes to a line.

    Parameters
    ----------
    divisor : clock cycles of a bit.

    Members
    -------
    i : In, a byte a transfer. line : Out.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "line": Out(1, init=1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        timer = Signal(range(self._divisor))
        left = Signal(range(BITS + 1))
        bits = Signal(BITS, init=-1)
        m.d.comb += [self.i.ready.eq(left == 0)]
        m.d.sync += self.line.eq(Mux(left == 0, 1, bits[0]))
        with m.If(left == 0), m.If(self.i.valid):
            m.d.sync += [
                bits.eq(Cat(0, self.i.payload, 1)), left.eq(BITS), timer.eq(self._divisor - 1),
            ]  # fmt: skip
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [bits.eq(Cat(bits[1:], 1)), left.eq(left - 1), timer.eq(self._divisor - 1)]
        return m
