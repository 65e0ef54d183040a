"""Sums of the activations of a group, which minima multiply: one a vector, for all rows."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import log2
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.engine.windows import Filled

__all__ = ["ONES_BITS", "READ_STAGE", "ActivationSums"]

ONES_BITS = 17
"""Of the sum of 256 activations."""
READ_STAGE = 3
"""A sum is read that long after its step begins: when it is complete, and before the next group's
sum can take its place."""


class ActivationSums(wiring.Component):
    """Adds the windows up on their way from A. Serves dense formats; where rows keep different
    positions, slices of ones do.

    Parameters
    ----------
    size : of the engine. stage : at which the sums are wanted, more than `READ_STAGE`.

    Members
    -------
    filled, data : In, a window from A. elements : In, of a group.
    batch, bank : In, of the step that begins. twin : In, the second cell has the first's vector.
    sums : Out, one a cell, of the step that is at `stage`.
    """

    def __init__(self, size: EngineSize, stage: int) -> None:
        self.size, self.stage = size, stage
        super().__init__({
            "filled": In(Filled(size)),
            "data": In(data.ArrayLayout(signed(8), size.window_bytes)),
            "elements": In(9),
            "batch": In(range(size.batches)), "bank": In(1), "twin": In(1),
            "sums": Out(data.ArrayLayout(signed(ONES_BITS), size.cells)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size, width = self.size, self.size.window_bytes
        begin = self.filled.place << log2(width)
        eights = Signal(data.ArrayLayout(signed(11), width // 8), reset_less=True)
        for k in range(width // 8):
            terms = [
                Mux(begin + 8 * k + j < self.elements, self.data[8 * k + j], 0) for j in range(8)
            ]
            m.d.sync += eights[k].eq(sum(terms))
        whole, total = Signal(signed(ONES_BITS)), Signal(signed(ONES_BITS))
        after, last = Signal(Filled(size)), Signal(Filled(size))
        before = Signal(signed(ONES_BITS))
        m.d.sync += [
            after.eq(self.filled), last.eq(after),
            whole.eq(sum(eights[k] for k in range(width // 8))),
        ]
        m.d.comb += total.eq(whole + Mux(last.place == 0, 0, before))
        with m.If(last.valid):
            m.d.sync += before.eq(total)
        batch, bank = self.batch, self.bank
        for k in range(READ_STAGE):
            late_batch = Signal.like(batch, name=f"batch_{k + 1}", reset_less=True)
            late_bank = Signal.like(bank, name=f"bank_{k + 1}", reset_less=True)
            m.d.sync += [late_batch.eq(batch), late_bank.eq(bank)]
            batch, bank = late_batch, late_bank
        for cell in range(size.cells):
            store = memory.Memory(
                shape=signed(ONES_BITS), depth=2 << len(self.batch), init=[]
            )
            m.submodules[f"cell_{cell}"] = store
            write, read = store.write_port(), store.read_port()
            own: Any = last.cell == cell
            if size.twin and cell == 1:
                own = own | self.twin
            m.d.comb += [
                write.en.eq(last.valid & last.over & own),
                write.addr.eq(Cat(last.batch, last.bank)), write.data.eq(total),
                read.addr.eq(Cat(batch, bank)),
            ]  # fmt: skip
            value: Any = read.data
            for k in range(READ_STAGE + 1, self.stage):
                later = Signal(signed(ONES_BITS), name=f"sum_{cell}_{k}", reset_less=True)
                m.d.sync += later.eq(value)
                value = later
            m.d.comb += self.sums[cell].eq(value)
        return m
