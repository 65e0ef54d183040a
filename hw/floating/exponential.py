"""exp(x)."""

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed

from flightllm.hw.floating.add import FloatAdd
from flightllm.hw.floating.integer import IntToFloat
from flightllm.hw.floating.layout import BIAS, Float32, magnitude, significand
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.pipeline import Datapath, delay
from flightllm.hw.floating.scale import FloatScale
from flightllm.hw.floating.table import Quadratic, coefficient_rom
from flightllm.spec import sfu_tables

__all__ = ["FloatExp"]


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


LOG2_E = _bits(1.44269502)
LOWEST = _bits(104.0)  # its magnitude
HIGHEST = _bits(88.0)


class FloatExp(Datapath):
    """exp(x) of docs/number-formats.md, any x; a NaN counts as the infinity of its sign.

    Clamp and multiply by log2(e) to t; n = floor(t); f = F(t - n); entry and middle of f's
    segment; d = F(f - middle); polynomial; scale by 2^n.

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
        t = self._logarithm(m)
        n, f = self._split(m, t)
        y = self._interpolate(m, f)
        m.submodules.scale = scale = FloatScale()
        # From n to the scaling: n as a float, f, its entry and middle, d, the polynomial.
        behind = self.latency - (1 + self.mul + 1) - 1
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

    def _split(self, m: Module, t: Any) -> tuple[Any, Any]:
        """n = floor(t), 1 cycle later, and f = F(t - n), 2 + add cycles later."""
        m.submodules.float_n = float_n = IntToFloat(9, latency=1)
        m.submodules.sub_n = sub_n = FloatAdd(self.add)
        # |t| < 256: 8 bits of integer above 23 and more of fraction.
        amount = Signal(4)
        m.d.comb += amount.eq(Mux(t.exponent < BIAS - 1, 8, BIAS + 7 - t.exponent))
        wide = Signal(32)
        m.d.comb += wide.eq(Cat(Const(0, 8), significand(t)) >> amount)
        whole = wide[24:]
        broken = wide[:24].any()
        floor = Signal(signed(9))
        m.d.comb += floor.eq(Mux(t.sign, -whole - broken, whole))
        n = delay(m, self.en, floor, 1, "floor")
        m.d.comb += [
            float_n.en.eq(self.en),
            float_n.i.eq(n),
            sub_n.en.eq(self.en),
            sub_n.i.a.eq(delay(m, self.en, t, 2, "t")),
            sub_n.i.b.eq(float_n.o),
            sub_n.i.subtract.eq(1),
        ]
        return n, sub_n.o

    def _interpolate(self, m: Module, f: Any) -> Any:
        """The polynomial of f in [0, 1], 2 + add + polynomial cycles later."""
        m.submodules.rom = rom = coefficient_rom(sfu_tables.EXP)
        m.submodules.middle = middle = IntToFloat(9, exponent=-8, latency=1)
        m.submodules.sub_middle = sub_middle = FloatAdd(self.add)
        m.submodules.polynomial = polynomial = Quadratic(self.add, self.mul)
        read = rom.read_port()
        entry = Signal(7)
        with m.If(f.exponent >= BIAS):  # f rounded up to 1
            m.d.comb += entry.eq(127)
        with m.Elif(f.exponent >= BIAS - 7):
            m.d.comb += entry.eq(significand(f)[17:] >> (BIAS - 1 - f.exponent)[:3])
        address = delay(m, self.en, entry, 1, "entry")
        coefficients = delay(m, self.en, read.data, self.add, "coefficients")
        m.d.comb += [
            read.en.eq(self.en),
            read.addr.eq(address),
            middle.i.eq(Cat(Const(1, 1), address, Const(0, 1))),  # 2 entry + 1, in 256ths
            sub_middle.i.a.eq(delay(m, self.en, f, 2, "f")),
            sub_middle.i.b.eq(middle.o),
            sub_middle.i.subtract.eq(1),
            polynomial.i.c.eq(coefficients),
            polynomial.i.d.eq(sub_middle.o),
        ]
        m.d.comb += [unit.en.eq(self.en) for unit in (middle, sub_middle, polynomial)]
        return polynomial.o
