"""F(x * 2^k) on the exponent alone."""

from typing import Any

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data

from flightllm.hw.floating.layout import Float32
from flightllm.hw.floating.pipeline import Datapath

__all__ = ["FloatScale", "Scaled"]

Scaled = data.StructLayout({"value": Float32, "power": signed(9)})


class FloatScale(Datapath):
    """F(value * 2^power), and a zero for every power below -126, as the table functions have it.

    2^power below -126 is no float32 number: what it would scale, at most 2, flushes. An operand
    below 2^-126 counts as zero; infinities and NaNs stay themselves at any other power.

    Parameters
    ----------
    latency : 1 cycle.

    Members
    -------
    i : In(Scaled), power from -256 to 255. o : Out(Float32).
    """

    CUTS = ("scaled",)
    ORDER = ("scaled",)

    def __init__(self, latency: int = 1) -> None:
        super().__init__(Scaled, Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        x = self.i.value
        exponent = Signal(signed(11))
        o = Signal(Float32)
        m.d.comb += [
            exponent.eq(x.exponent + self.i.power),
            o.sign.eq(x.sign),
            o.exponent.eq(exponent[:8]),
            o.fraction.eq(x.fraction),
        ]
        with m.If((self.i.power < -126) | ~x.exponent.any()):
            m.d.comb += [o.exponent.eq(0), o.fraction.eq(0)]
        with m.Elif(x.exponent.all()):
            m.d.comb += o.exponent.eq(255)
        with m.Elif(exponent >= 255):
            m.d.comb += [o.exponent.eq(255), o.fraction.eq(0)]
        with m.Elif(exponent <= 0):
            # Just below 2^-126 with all bits set: IEEE's subnormal rounds up to 2^-126.
            edge = (exponent == 0) & x.fraction.all()
            m.d.comb += [o.exponent.eq(edge), o.fraction.eq(0)]
        scaled = self.cut(m, "scaled", result=o)
        m.d.comb += self.o.eq(scaled.result)
        return m
