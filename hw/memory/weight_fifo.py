"""The weight FIFO of a channel: what LD.stream prefetches for the decode unit."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.ram import Ram

__all__ = ["WeightFifo"]


class WeightFifo(wiring.Component):
    """A FIFO in block memory, one beat in and one out a cycle; a beat passes in two cycles.

    Parameters
    ----------
    width : bits of a beat. depth : beats it takes for certain; one more waits at the output.

    Members
    -------
    i, o : streams. level : beats held, the one at the output included.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._width, self._depth = width, depth
        super().__init__({
            "i": In(stream.Signature(width)),
            "o": Out(stream.Signature(width)),
            "level": Out(range(depth + 2)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.words = words = Ram(self._width, self._depth)
        first, end = Signal(range(self._depth)), Signal(range(self._depth))
        stored = Signal(range(self._depth + 1))
        push, pop = Signal(), Signal()

        def after(place: Signal) -> Any:
            return Mux(place == self._depth - 1, 0, place + 1)

        m.d.comb += [
            self.i.ready.eq(stored != self._depth),
            push.eq(self.i.valid & self.i.ready),
            # The memory's output register is the FIFO's.
            pop.eq((stored != 0) & (~self.o.valid | self.o.ready)),
            words.write_enable.eq(push),
            words.write_address.eq(end),
            words.write_data.eq(self.i.payload),
            words.read_enable.eq(pop),
            words.read_address.eq(first),
            self.o.payload.eq(words.read_data),
            self.level.eq(stored + self.o.valid),
        ]
        m.d.sync += stored.eq(stored + push - pop)
        with m.If(push):
            m.d.sync += end.eq(after(end))
        with m.If(pop):
            m.d.sync += [first.eq(after(first)), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
