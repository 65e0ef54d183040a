"""The CSD-chain without primitives: products and an adder tree, for any FPGA and for simulation."""

from typing import Any

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain.packed import chain_layout, sum_bits

__all__ = ["InferredChain", "tree"]


def tree(m: Module, en: Value, values: list[Value], bits: int, name: str) -> tuple[Value, int]:
    """The sum of `values`, four at a time with registers between; and how many cycles it takes."""
    cycles = 0
    while len(values) > 1:
        step = []
        for k in range(0, len(values), 4):
            part = Signal(signed(bits), name=f"{name}_{cycles}_{k}", reset_less=True)
            with m.If(en):
                m.d.sync += part.eq(sum(values[k + 1 : k + 4], start=values[k]))
            step.append(part)
        values, cycles = step, cycles + 1
    return values[0], cycles


def tree_cycles(count: int) -> int:
    """Cycles that `tree` takes for `count` values."""
    cycles = 0
    while count > 1:
        count, cycles = -(-count // 4), cycles + 1
    return cycles


class InferredChain(wiring.Component):
    """As `PackedChain`; each product is written as `*`.

    Parameters
    ----------
    lanes : products of a row.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
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
        return 1 + tree_cycles(lanes)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for row in range(2):
            products: list[Value] = []
            for lane in range(self.lanes):
                product = Signal(signed(16), name=f"product_{row}_{lane}", reset_less=True)
                with m.If(self.en):
                    m.d.sync += product.eq(self.codes[row][lane] * self.x[lane])
                products.append(product)
            total, _ = tree(m, self.en, products, sum_bits(self.lanes), f"sum_{row}")
            m.d.comb += self.sums[row].eq(total)
        return m
