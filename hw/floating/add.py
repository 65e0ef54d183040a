"""F(a + b) and F(a - b)."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data

from flightllm.hw.floating.layout import Float32, magnitude, significand
from flightllm.hw.floating.pipeline import Datapath
from flightllm.hw.floating.rounding import (
    leading_zeros,
    round_and_pack,
    shift_left,
    shift_right,
)

__all__ = ["AddOperands", "FloatAdd"]

AddOperands = data.StructLayout({"a": Float32, "b": Float32, "subtract": 1})


class FloatAdd(Datapath):
    """F(a + b), or F(a - b) where `subtract` is set.

    Operands below 2^-126 are added as what they are. inf - inf is NaN.

    Parameters
    ----------
    latency : 1 to 6 cycles.

    Members
    -------
    i : In(AddOperands). o : Out(Float32).
    """

    CUTS = ("ordered", "aligned", "summed", "counted", "normalised", "rounded")
    ORDER = ("rounded", "summed", "ordered", "counted", "aligned", "normalised")

    def __init__(self, latency: int = 5) -> None:
        super().__init__(AddOperands, Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ordered = self._order(m)
        summed = self._sum(m, ordered)
        counted = self.cut(
            m, "counted", zeros=leading_zeros(m, summed.total, "zeros"), **vars(summed)
        )
        shifted = shift_left(m, counted.total, counted.zeros, "normalise")
        empty = counted.total == 0
        normalised = self.cut(
            m, "normalised",
            significand=shifted[4:], guard=shifted[3], sticky=shifted[:3].any(),
            exponent=(counted.exponent + 1 - counted.zeros)[:10].as_signed(),
            sign=Mux(empty, counted.zero_sign, counted.sign), zero=empty,
            infinite=counted.infinite, nan=counted.nan,
        )  # fmt: skip
        rounded = self.cut(m, "rounded", result=round_and_pack(m, normalised))
        m.d.comb += self.o.eq(rounded.result)
        return m

    def _order(self, m: Module) -> SimpleNamespace:
        """The larger magnitude first, and how far the smaller lies below it."""
        a, b = self.i.a, self.i.b
        b_sign = b.sign ^ self.i.subtract
        swap = Signal()
        m.d.comb += swap.eq(magnitude(b) > magnitude(a))
        # Below 2^-126 the exponent field is 0, but counts as 1.
        a_exponent = Cat(a.exponent[0] | ~a.exponent.any(), a.exponent[1:])
        b_exponent = Cat(b.exponent[0] | ~b.exponent.any(), b.exponent[1:])
        differ = a.sign ^ b_sign
        any_nan = (a.exponent.all() & a.fraction.any()) | (b.exponent.all() & b.fraction.any())
        return self.cut(
            m, "ordered",
            large=Mux(swap, significand(b), significand(a)),
            small=Mux(swap, significand(a), significand(b)),
            exponent=Mux(swap, b_exponent, a_exponent),
            distance=Mux(swap, b_exponent - a_exponent, a_exponent - b_exponent)[:8],
            sign=Mux(swap, b_sign, a.sign), zero_sign=a.sign & b_sign, differ=differ,
            infinite=a.exponent.all() | b.exponent.all(),
            nan=any_nan | (differ & a.exponent.all() & b.exponent.all()),
        )  # fmt: skip

    def _sum(self, m: Module, x: SimpleNamespace) -> SimpleNamespace:
        """The sum with guard, round and sticky bit below it and a carry above: 28 bits."""
        near, lost = shift_right(m, Cat(Const(0, 3), x.small), x.distance[:5], "align")
        # 32 places or more below a number of 24 bits nothing can change its rounding.
        small = Mux(x.distance[5:].any(), 0, Cat(near[0] | lost, near[1:]))
        aligned = self.cut(
            m, "aligned",
            large=Cat(Const(0, 3), x.large), small=small, differ=x.differ, exponent=x.exponent,
            sign=x.sign, zero_sign=x.zero_sign, infinite=x.infinite, nan=x.nan,
        )  # fmt: skip
        total = Mux(aligned.differ, aligned.large - aligned.small, aligned.large + aligned.small)
        return self.cut(
            m, "summed",
            total=total[:28], exponent=Cat(aligned.exponent, Const(0, 2)).as_signed(),
            sign=aligned.sign, zero_sign=aligned.zero_sign, infinite=aligned.infinite,
            nan=aligned.nan,
        )  # fmt: skip
