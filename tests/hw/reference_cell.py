"""A cell as plain arithmetic: what the chains of every device must equal."""

from typing import Any

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.engine.channel import sum_bits
from flightllm.hw.engine.windows import window_layout

__all__ = ["ReferenceCell"]


class ReferenceCell(wiring.Component):
    """Each lane picks its activation; two rows of codes meet it; two sums, 3 cycles later."""

    latency = 3

    def __init__(self, k_lanes: int) -> None:
        self.k_lanes, self.bits = k_lanes, sum_bits(k_lanes)
        super().__init__({
            "codes": In(data.ArrayLayout(data.ArrayLayout(signed(8), k_lanes), 2)),
            "picks": In(data.ArrayLayout(4, k_lanes)),
            "windows": In(window_layout(k_lanes)),
            "sums": Out(data.ArrayLayout(signed(self.bits), 2)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        codes = Signal(self.codes.shape())
        m.d.sync += codes.eq(self.codes)
        picked = []
        for lane in range(self.k_lanes):
            chosen = Signal(signed(8), name=f"x_{lane}")
            window = self.windows[lane // 8].as_value()
            m.d.sync += chosen.eq(window.word_select(self.picks[lane], 8))
            picked.append(chosen)
        for row in range(2):
            total = Signal(signed(self.bits), name=f"total_{row}")
            m.d.sync += [
                total.eq(sum(picked[k] * codes[row][k] for k in range(self.k_lanes))),
                self.sums[row].eq(total),
            ]
        return m
