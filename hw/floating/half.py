"""Between float32 and fp16."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal

from flightllm.hw.floating.layout import BIAS, Float16, Float32, significand
from flightllm.hw.floating.pipeline import Datapath
from flightllm.hw.floating.rounding import leading_zeros, round_up, shift_left, shift_right

__all__ = ["FloatToHalf", "HalfToFloat"]

HALF_BIAS = 15
LARGEST = 0x7BFF
"""Magnitude bits of 65504, the largest fp16 number."""


class FloatToHalf(Datapath):
    """float32 to the nearest fp16, ties to even, subnormals included, saturating at 65504.

    Infinities and NaNs saturate by their sign.

    Parameters
    ----------
    latency : 1 or 2 cycles.

    Members
    -------
    i : In(Float32). o : Out(Float16).
    """

    CUTS = ("shifted", "rounded")
    ORDER = ("rounded", "shifted")

    def __init__(self, latency: int = 2) -> None:
        super().__init__(Float32, Float16, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        x = self.i
        lowest = BIAS - HALF_BIAS + 1  # exponent field of 2^-14, the smallest normal fp16
        subnormal = x.exponent < lowest
        amount = Signal(4)  # 12 loses everything: below half of 2^-24
        m.d.comb += amount.eq(
            Mux(~subnormal, 0, Mux(x.exponent < lowest - 12, 12, lowest - x.exponent))
        )
        right, lost = shift_right(m, significand(x), amount, "align")
        shifted = self.cut(
            m, "shifted",
            # The hidden bit of a subnormal is gone, and its exponent field is 0.
            magnitude=Cat(right[13:23], Mux(subnormal, 0, x.exponent - (lowest - 1))[:5]),
            guard=right[12], sticky=right[:12].any() | lost,
            beyond=x.exponent > lowest + 29, sign=x.sign,
        )  # fmt: skip
        up = round_up(shifted.magnitude[0], shifted.guard, shifted.sticky)
        total = shifted.magnitude + up
        rounded = self.cut(
            m, "rounded",
            magnitude=Mux(shifted.beyond | (total > LARGEST), LARGEST, total)[:15],
            sign=shifted.sign,
        )  # fmt: skip
        m.d.comb += self.o.eq(Cat(rounded.magnitude, rounded.sign))
        return m


class HalfToFloat(Datapath):
    """fp16 to float32, exact, subnormals included; infinities stay, NaNs keep their payload.

    Parameters
    ----------
    latency : 1 or 2 cycles.

    Members
    -------
    i : In(Float16). o : Out(Float32).
    """

    CUTS = ("counted", "widened")
    ORDER = ("widened", "counted")

    def __init__(self, latency: int = 1) -> None:
        super().__init__(Float16, Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        x = self.i
        counted = self.cut(
            m, "counted", x=x, zeros=leading_zeros(m, x.fraction, "zeros"),
            zero=~(x.fraction.any() | x.exponent.any()),
        )  # fmt: skip
        x = counted.x
        o = Signal(Float32)
        shifted = shift_left(m, x.fraction, counted.zeros, "normalise")
        m.d.comb += [
            o.sign.eq(x.sign),
            o.fraction.eq(Cat(Const(0, 13), x.fraction)),
            o.exponent.eq(x.exponent + (BIAS - HALF_BIAS)),
        ]
        with m.If(x.exponent.all()):
            m.d.comb += o.exponent.eq(255)
        with m.Elif(counted.zero):
            m.d.comb += o.exponent.eq(0)
        with m.Elif(~x.exponent.any()):
            m.d.comb += [
                o.exponent.eq(BIAS - HALF_BIAS - counted.zeros),
                o.fraction.eq(Cat(Const(0, 14), shifted[:9])),
            ]
        widened = self.cut(m, "widened", result=o)
        m.d.comb += self.o.eq(widened.result)
        return m
