"""What follows a cell's sum of one row: group sum, float32, scale, minimum, accumulator."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.engine.job import Mode
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.engine.sums import ONES_BITS
from flightllm.hw.engine.timing import Control
from flightllm.hw.floating import Float32, FloatAdd, FloatMul, IntToFloat
from flightllm.hw.memory.ram import Ram
from flightllm.hw.sharing import shared

__all__ = ["GROUP_BITS", "Lane"]

GROUP_BITS = 24
"""Of the sum of a group of 256 products of INT8 numbers."""
HALF_BITS = 11
"""Significant bits of an fp16 number."""


@shared()
class Lane(wiring.Component):
    """One row of a pair, one vector of a batch.

    Members
    -------
    sum : In, from the cell, at stage `sums`. control : In.
    ones : In, the group's sum of activations of a dense format, a cycle after `sum`.
    mode : In, steady while an instruction runs.
    scale, minimum : In, float32, at stage `scaled`.
    result : Out, the accumulator after this group, at stage `result`.
    """

    def __init__(self, size: EngineSize, sum_bits: int) -> None:
        self.size = size
        super().__init__({
            "sum": In(signed(sum_bits)),
            "control": In(Control(size)),
            "ones": In(signed(ONES_BITS)), "mode": In(Mode),
            "scale": In(Float32), "minimum": In(Float32),
            "result": Out(Float32),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size, control = self.size, self.control
        group = self._partial(m, "group", GROUP_BITS, control.fresh, control.ones)
        ones = self._partial(m, "ones", ONES_BITS, control.fresh_ones, ~control.ones)
        m.submodules.accumulators = store = Ram(32, size.accumulators)
        total, total_ones = Signal(signed(32)), Signal(signed(ONES_BITS))
        before = Mux(control.clear_total, 0, store.read_data.as_signed())
        # An entry that is read while it is written.
        same, written = Signal(), Signal(32, reset_less=True)
        m.d.sync += [
            same.eq(control.write_en & (control.write == control.read)),
            written.eq(self.result.as_value()),
        ]
        m.d.sync += [total.eq(group + before), total_ones.eq(Mux(self.mode.dense, self.ones, ones))]
        term = self._scaled(m, total, total_ones)
        m.submodules.accumulate = accumulate = FloatAdd(size.add)
        m.d.comb += [
            store.read_enable.eq(1),
            store.read_address.eq(control.read),
            accumulate.en.eq(1),
            accumulate.i.a.eq(Mux(control.clear, 0, Mux(same, written, store.read_data))),
            accumulate.i.b.eq(term),
            self.result.eq(accumulate.o),
            store.write_enable.eq(control.write_en),
            store.write_address.eq(control.write),
            store.write_data.eq(Mux(self.mode.scaled, self.result.as_value(), total)),
        ]
        return m

    def _partial(self, m: Module, name: str, bits: int, fresh: Any, other: Any) -> Signal:
        """The sum over the group's slices so far, a register; of each batch, slices apart."""
        store = memory.Memory(shape=signed(bits), depth=max(self.size.batches, 2), init=[])
        m.submodules[f"{name}_partial"] = store
        read, write = store.read_port(domain="comb"), store.write_port()
        value, out = Signal(signed(bits)), Signal(signed(bits), name=f"{name}_sum")
        m.d.comb += [
            read.addr.eq(self.control.batch),
            value.eq(Mux(fresh, 0, read.data) + Mux(other, 0, self.sum)),
            write.addr.eq(self.control.batch),
            write.data.eq(value),
            write.en.eq(self.control.valid),
        ]
        m.d.sync += out.eq(value)
        return out

    def _scaled(self, m: Module, total: Any, ones: Any) -> Any:
        """t: the group's sum times its scale, plus the sum of activations times the minimum.

        Scale and minimum were fp16, and a sum of activations is short: a DSP takes each product.
        """
        size = self.size
        products = []
        for name, value, factor in (
            ("scale", total, self.scale), ("minimum", ones, self.minimum),
        ):  # fmt: skip
            convert = IntToFloat(len(value), latency=size.convert)
            multiply = FloatMul(size.mul, a_bits=min(len(value), 24), b_bits=HALF_BITS)
            m.submodules[f"{name}_convert"], m.submodules[f"{name}_multiply"] = convert, multiply
            m.d.comb += [
                convert.en.eq(1), convert.i.eq(value),
                multiply.en.eq(1), multiply.i.a.eq(convert.o), multiply.i.b.eq(factor),
            ]  # fmt: skip
            products.append(multiply.o)
        m.submodules.term = add = FloatAdd(size.add)
        m.d.comb += [
            add.en.eq(1), add.i.a.eq(products[0]), add.i.b.eq(products[1]),
        ]  # fmt: skip
        return Mux(self.mode.minima, add.o.as_value(), products[0].as_value())
