"""The CSD-chain of DSP58s in INT8 mode: three products a slice, a cascade for each row."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain.packed import chain_layout, sum_bits
from flightllm.hw.chain.primitive import DSP58, Dsp
from flightllm.hw.floating.pipeline import delay

__all__ = ["TripleChain"]


class TripleChain(wiring.Component):
    """As `PackedChain`, without packing: 58-bit sums neither borrow nor overflow.

    Parameters
    ----------
    lanes : products of a row; a cascade has a slice for each three.
    modelled : see `Dsp`.

    Members
    -------
    en, codes, x, rows, sums : see `PackedChain`; `rows` changes nothing.
    """

    def __init__(self, lanes: int, modelled: bool = False) -> None:
        self.lanes, self.modelled = lanes, modelled
        self.length = -(-lanes // 3)
        self.latency = self.cycles(lanes)
        super().__init__({
            "en": In(1, init=1),
            "codes": In(chain_layout(lanes)),
            "x": In(data.ArrayLayout(signed(8), lanes)),
            "rows": In(2, init=3),
            "sums": Out(data.ArrayLayout(signed(sum_bits(lanes)), 2)),
        })  # fmt: skip

    @staticmethod
    def cycles(lanes: int) -> int:
        """Latency of a chain with that many lanes."""
        return DSP58.latency + -(-lanes // 3)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        x = [
            [
                delay(m, self.en, self.x[lane], lane // 3, f"x_{lane}")
                for lane in range(3 * k, min(3 * k + 3, self.lanes))
            ]
            for k in range(self.length)
        ]
        for row in range(2):
            before: Any = None
            for k, group in enumerate(x):
                m.submodules[f"dsp_{row}_{k}"] = dsp = Dsp(
                    DSP58, cascaded=k > 0, modelled=self.modelled
                )
                codes = [
                    delay(m, self.en, self.codes[row][3 * k + j], k, f"code_{row}_{3 * k + j}")
                    for j in range(len(group))
                ]
                m.d.comb += [
                    dsp.en.eq(self.en),
                    dsp.a.eq(Cat(Cat(code, code[-1]) for code in codes)),
                    dsp.b.eq(Cat(group)),
                    dsp.join.eq(Const(1, 1)),
                ]
                if before is not None:
                    m.d.comb += dsp.pcin.eq(before.pcout)
                before = dsp
            with m.If(self.en):
                m.d.sync += self.sums[row].eq(before.p)
        return m
