"""max(a, b), and which is greater."""

from typing import Any

from amaranth.hdl import Module, Mux
from amaranth.lib import data

from flightllm.hw.floating.layout import Float32, Operands, magnitude
from flightllm.hw.floating.pipeline import Datapath

__all__ = ["FloatMax", "Maximum"]

Maximum = data.StructLayout({"value": Float32, "b_greater": 1})


class FloatMax(Datapath):
    """The greater of a and b, and whether b > a.

    A maximum of +0 and -0 is +0, though neither is greater; equal operands leave `b_greater` 0, so
    that a search which takes b only where it is greater finds the first maximum. A NaN counts as
    larger in magnitude than the infinity of its sign.

    Parameters
    ----------
    latency : 1 or 2 cycles.

    Members
    -------
    i : In(Operands). o : Out(Maximum).
    """

    CUTS = ("compared", "chosen")
    ORDER = ("chosen", "compared")

    def __init__(self, latency: int = 1) -> None:
        super().__init__(Operands, Maximum, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        a, b = self.i.a, self.i.b
        compared = self.cut(
            m, "compared",
            a=a, b=b, above=magnitude(b) > magnitude(a), below=magnitude(b) < magnitude(a),
            zeros=~(magnitude(a).any() | magnitude(b).any()),
        )  # fmt: skip
        # Of two signs the positive one is greater; of two negative numbers the smaller magnitude.
        differ = compared.a.sign ^ compared.b.sign
        upper = Mux(differ, compared.a.sign, Mux(compared.a.sign, compared.below, compared.above))
        chosen = self.cut(
            m, "chosen",
            value=Mux(upper, compared.b.as_value(), compared.a.as_value()),
            b_greater=upper & ~compared.zeros,
        )  # fmt: skip
        m.d.comb += [self.o.value.eq(chosen.value), self.o.b_greater.eq(chosen.b_greater)]
        return m
