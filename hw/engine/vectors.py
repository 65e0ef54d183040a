"""Walks the vectors of an instruction: their addresses, and the cell and batch that they take."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.engine.job import COUNT_BITS
from flightllm.hw.engine.size import EngineSize

__all__ = ["VectorWalker"]


class VectorWalker(wiring.Component):
    """Vectors (i1, i2), i2 fastest, around and around; addresses grow by strides.

    Parameters
    ----------
    size : of the engine. addresses : how many are carried along.

    Members
    -------
    n1, n2 : In, vectors. base, stride1, stride2 : In, of each address.
    restart : In, back to the first vector. advance : In, on to the next; after the last, the first.
    address : Out, of this vector. index : its number. batch, cell : index divided by `cells`.
    last : Out, it is the last vector.
    """

    def __init__(self, size: EngineSize, addresses: int) -> None:
        self.size, self._addresses = size, addresses
        words = data.ArrayLayout(32, addresses)
        super().__init__({
            "n1": In(COUNT_BITS), "n2": In(COUNT_BITS),
            "base": In(words), "stride1": In(words), "stride2": In(words),
            "restart": In(1), "advance": In(1),
            "address": Out(words),
            "index": Out(range(size.vectors)),
            "batch": Out(range(size.batches)),
            "cell": Out(range(size.cells)),
            "last": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        i1, i2 = Signal(COUNT_BITS), Signal(COUNT_BITS)
        rows = Signal.like(self.base)
        inner = Signal()
        m.d.comb += [
            inner.eq(i2 + 1 == self.n2),
            self.last.eq(inner & (i1 + 1 == self.n1)),
        ]
        with m.If(self.restart | (self.advance & self.last)):
            m.d.sync += [
                i1.eq(0), i2.eq(0), self.index.eq(0), self.batch.eq(0), self.cell.eq(0),
                rows.eq(self.base), self.address.eq(self.base),
            ]  # fmt: skip
        with m.Elif(self.advance):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(self.cell == self.size.cells - 1):
                m.d.sync += [self.cell.eq(0), self.batch.eq(self.batch + 1)]
            with m.Else():
                m.d.sync += self.cell.eq(self.cell + 1)
            for k in range(self._addresses):
                with m.If(inner):
                    m.d.sync += [
                        rows[k].eq(rows[k] + self.stride1[k]),
                        self.address[k].eq(rows[k] + self.stride1[k]),
                    ]
                with m.Else():
                    m.d.sync += self.address[k].eq(self.address[k] + self.stride2[k])
            with m.If(inner):
                m.d.sync += [i2.eq(0), i1.eq(i1 + 1)]
            with m.Else():
                m.d.sync += i2.eq(i2 + 1)
        return m
