"""exp(x)."""

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed

from flightllm.hw.floating.integer import IntToFloat
from flightllm.hw.floating.layout import BIAS, Float32, magnitude, significand
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.pipeline import Datapath, delay
from flightllm.hw.floating.rounding import round_up, shift_right
from flightllm.hw.floating.scale import FloatScale
from flightllm.hw.floating.table import Quadratic, coefficient_rom
from flightllm.spec import sfu_tables

__all__ = ["FloatExp"]


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


LOG2_E = _bits(1.44269502)
LOWEST = _bits(104.0)  # its magnitude
HIGHEST = _bits(88.0)
FRACTION = 34
"""Bits of f. d is within 2^-8, and where it has more than 24 bits, beyond 2^-9: places from 2^-32
on, half a place, and whether there is more."""


class FloatExp(Datapath):
    """exp(x) of docs/number-formats.md, any x; a NaN counts as the infinity of its sign.

    Clamp and multiply by log2(e) to t; n = floor(t); f = F(t - n), a fixed-point number; entry
    and middle of f's segment; d = F(f - middle); polynomial; scale by 2^n.

    Parameters
    ----------
    add, mul : latencies of the adders and multipliers; its own is 4 add + 3 mul + 6.

    Members
    -------
    i : In(Float32). o : Out(Float32).
    """

    def __init__(self, add: int = 5, mul: int = 4) -> None:
        self.add, self.mul = add, mul
        super().__init__(Float32, Float32, 4 * add + 3 * mul + 6)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        # Two additions would make f and d; fixed-point numbers are as fast and far smaller.
        t = delay(m, self.en, self._logarithm(m), 2 * self.add, "t")
        n, f, one = self._split(m, t)
        y = self._interpolate(m, f, one)
        m.submodules.scale = scale = FloatScale()
        behind = 2 + 2 * (self.add + self.mul)  # cycles from n to the scaling
        m.d.comb += [
            scale.en.eq(self.en),
            scale.i.value.eq(y),
            scale.i.power.eq(delay(m, self.en, n, behind, "n")),
            self.o.eq(scale.o),
        ]
        return m

    def _logarithm(self, m: Module) -> Any:
        """t = F(clamp(x) * log2(e)), 1 + mul cycles later."""
        m.submodules.mul_log2_e = mul = FloatMul(self.mul)
        limit = Mux(self.i.sign, LOWEST, HIGHEST)
        clamped = Signal(Float32)
        m.d.comb += [
            clamped.eq(
                Cat(
                    Mux(magnitude(self.i) > limit, limit, magnitude(self.i)),
                    self.i.sign,
                )
            ),
            mul.en.eq(self.en),
            mul.i.a.eq(delay(m, self.en, clamped, 1, "clamped")),
            mul.i.b.eq(Const(LOG2_E, 32)),
        ]
        return mul.o

    def _split(self, m: Module, t: Any) -> tuple[Any, Any, Any]:
        """n = floor(t), and f = F(t - n) as a fixed-point number: 2 cycles later.

        |t| < 256, so that f has 24 bits of fraction where t is negative. Where t is positive, f is
        t's own fraction; what lies below 2^-33 only decides how d is rounded, if at all.

        Returns
        -------
        n, the bits of f behind its point (the last one: whether there is more), and f = 1.
        """
        # Eight bits of integer above the fraction; by 63 places everything is shifted out.
        far = BIAS + 7 - t.exponent
        amount = Signal(6)
        m.d.comb += amount.eq(Mux(t.exponent < BIAS + 7 - 62, 63, far))
        wide, lost = shift_right(m, Cat(Const(0, FRACTION - 16), significand(t)), amount, "point")
        wide, sign = (
            delay(m, self.en, value, 1, name)
            for value, name in ((Cat(wide[0] | lost, wide[1:]), "wide"), (t.sign, "t_sign"))
        )
        whole, part = wide[FRACTION:], wide[:FRACTION]
        low = FRACTION - 24
        # Minus a number is its complement plus 1: to round it up the 1 is left out.
        up = round_up(part[low], part[low - 1], part[: low - 1].any())
        top, n = Signal(25), Signal(signed(9))
        broken = part.any()
        m.d.comb += [
            top.eq((part[low:] ^ sign.replicate(24)) + (sign & ~up)),
            n.eq((whole ^ sign.replicate(8)) + (sign & ~broken) - (sign << 8)),
        ]
        f = Cat(part[:low] & ~sign.replicate(low), top[:24])
        return (
            delay(m, self.en, n, 1, "floor"), delay(m, self.en, f, 1, "f"),
            delay(m, self.en, top[24] & broken, 1, "f_is_1"),
        )  # fmt: skip

    def _interpolate(self, m: Module, f: Any, one: Any) -> Any:
        """The polynomial of f in [0, 1], 2 + polynomial cycles later."""
        m.submodules.rom = rom = coefficient_rom(sfu_tables.EXP)
        m.submodules.distance = distance = IntToFloat(28, exponent=-FRACTION, latency=2)
        m.submodules.polynomial = polynomial = Quadratic(self.add, self.mul)
        read = rom.read_port()
        middle = FRACTION - 8  # the place of half a segment
        below = ~f[middle]
        m.d.comb += [
            read.en.eq(self.en),
            read.addr.eq(f[middle + 1 :] | one.replicate(7)),
            distance.i.eq(Cat(f[:middle], below | one, below & ~one)),
            polynomial.i.c.eq(delay(m, self.en, read.data, 1, "coefficients")),
            polynomial.i.d.eq(distance.o),
        ]
        m.d.comb += [unit.en.eq(self.en) for unit in (distance, polynomial)]
        return polynomial.o
