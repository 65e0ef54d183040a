"""Between integers and float32."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data

from flightllm.hw.floating.layout import BIAS, Float32, significand
from flightllm.hw.floating.pipeline import Datapath
from flightllm.hw.floating.rounding import (
    leading_bytes,
    normalise_byte,
    round_and_pack,
    round_up,
    shift_right,
)

__all__ = ["FloatToInt8", "IntToFloat", "Levelled"]

Levelled = data.StructLayout({"value": Float32, "narrow": 1})


class IntToFloat(Datapath):
    """A signed integer times a constant power of two, to nearest even; 0 gives +0.

    Up to 25 bits every result is exact, and the rounding folds away.

    Parameters
    ----------
    width : bits of the integer, 2 to 64.
    exponent : the constant factor is 2^exponent; -60 to 60, so that nothing leaves the range.
    latency : 1 to 4 cycles.

    Members
    -------
    i : In(signed(width)). o : Out(Float32).
    """

    CUTS = ("captured", "counted", "normalised", "rounded")
    ORDER = ("rounded", "counted", "normalised", "captured")

    def __init__(self, width: int = 32, exponent: int = 0, latency: int = 3) -> None:
        if width not in range(2, 65):
            raise ValueError(f"IntToFloat width must be an integer from 2 to 64, not {width!r}")
        if exponent not in range(-60, 61):
            raise ValueError(
                f"IntToFloat exponent must be an integer from -60 to 60, not {exponent!r}"
            )
        self.width = width
        self.exponent = exponent
        super().__init__(signed(width), Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        sign = self.i[-1]
        inverted = self.i.as_unsigned() ^ sign.replicate(self.width)
        captured = self.cut(
            m, "captured", magnitude=(inverted + sign)[: self.width], sign=sign
        )
        value, count = leading_bytes(m, captured.magnitude, "normalise")
        counted = self.cut(m, "counted", value=value, bytes=count, sign=captured.sign)
        shifted, fine = normalise_byte(m, counted.value, "normalise")
        zeros = Cat(fine, counted.bytes)
        wide = Cat(Const(0, 26), shifted)  # its top 24 bits are the significand
        top = BIAS + self.width - 1 + self.exponent  # exponent field of a set top bit
        normalised = self.cut(
            m, "normalised",
            significand=wide[-24:], guard=wide[-25], sticky=wide[:-25].any(),
            exponent=(Const(top, signed(10)) - zeros)[:10].as_signed(),
            sign=counted.sign, zero=~shifted[-1],
        )  # fmt: skip
        rounded = self.cut(m, "rounded", result=round_and_pack(m, normalised, False, True))
        m.d.comb += self.o.eq(rounded.result)
        return m


class FloatToInt8(Datapath):
    """clamp(rint(x), 127), or clamp(rint(x), 7) where `narrow` is set.

    Infinities and NaNs clamp by their sign.

    Parameters
    ----------
    latency : 1 to 3 cycles.

    Members
    -------
    i : In(Levelled). o : Out(signed(8)).
    """

    CUTS = ("shifted", "rounded", "clamped")
    ORDER = ("clamped", "shifted", "rounded")

    def __init__(self, latency: int = 2) -> None:
        super().__init__(Levelled, signed(8), latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        x = self.i.value
        highest = BIAS + 6  # exponent field of 64 to 128: the integer is the top 7 bits
        amount = Signal(4)
        m.d.comb += amount.eq(Mux(x.exponent < highest - 8, 8, highest - x.exponent))
        # 7 bits of integer, guard, and the rest for sticky.
        right, lost = shift_right(m, significand(x), amount, "align")
        shifted = self.cut(
            m, "shifted",
            integer=right[17:], guard=right[16], sticky=right[:16].any() | lost,
            beyond=x.exponent > highest, sign=x.sign, narrow=self.i.narrow,
        )  # fmt: skip
        up = round_up(shifted.integer[0], shifted.guard, shifted.sticky)
        rounded = self.cut(
            m, "rounded",
            integer=shifted.integer + up, beyond=shifted.beyond, sign=shifted.sign,
            narrow=shifted.narrow,
        )  # fmt: skip
        limit = Cat(Const(7, 3), (~rounded.narrow).replicate(4))
        size = Signal(7)
        m.d.comb += size.eq(Mux(rounded.beyond | (rounded.integer > limit), limit, rounded.integer))
        clamped = self.cut(m, "clamped", result=Mux(rounded.sign, -size, size)[:8].as_signed())
        m.d.comb += self.o.eq(clamped.result)
        return m
