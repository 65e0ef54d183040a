"""F(a * b)."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Cat, Const, Module

from flightllm.hw.floating.layout import BIAS, Float32, Operands, significand
from flightllm.hw.floating.pipeline import Datapath
from flightllm.hw.floating.rounding import leading_zeros, round_and_pack, shift_left

__all__ = ["FloatMul"]

FULL = 24
"""Bits of a significand."""


class FloatMul(Datapath):
    """F(a * b), its 24 x 24 bit product inferred: two DSP48E2, three DSP48E1; one of each where b
    has 17 significant bits or fewer.

    Zero times infinity is NaN.

    Parameters
    ----------
    latency : 1 to 5 cycles; "captured", "multiplied" and "added" are the registers of a DSP slice
        before, inside and behind its multiplier.
    subnormal_operands : multiply operands below 2^-126 exactly (a leading-zero count and a shift
        of 48 bits more) rather than as zeros.
    a_bits, b_bits : significant bits that a and b have at most; what was an fp16 number has 11.

    Members
    -------
    i : In(Operands). o : Out(Float32).
    """

    CUTS = ("captured", "multiplied", "added", "normalised", "rounded")
    ORDER = ("rounded", "multiplied", "captured", "normalised", "added")

    def __init__(self, latency: int = 4, subnormal_operands: bool = False, a_bits: int = FULL,
                 b_bits: int = FULL) -> None:  # fmt: skip
        self.subnormal_operands = subnormal_operands
        self._zeros = (FULL - a_bits, FULL - b_bits)
        super().__init__(Operands, Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        captured = self._capture(m)
        flags = {name: getattr(captured, name) for name in ("sign", "zero", "infinite", "nan")}
        multiplied = self.cut(
            m, "multiplied",
            product=Cat(Const(0, sum(self._zeros)), captured.a * captured.b),
            exponent=(captured.a_exponent + captured.b_exponent - (BIAS - 1))[:10].as_signed(),
            **flags,
        )  # fmt: skip
        added = self.cut(m, "added", **vars(multiplied))
        if self.subnormal_operands:
            zeros = leading_zeros(m, added.product[23:], "zeros")
        else:
            zeros = ~added.product[47]
        shifted = shift_left(m, added.product, zeros, "normalise")
        normalised = self.cut(
            m, "normalised",
            significand=shifted[24:], guard=shifted[23], sticky=shifted[:23].any(),
            exponent=(added.exponent - zeros)[:10].as_signed(), sign=added.sign, zero=added.zero,
            infinite=added.infinite, nan=added.nan,
        )  # fmt: skip
        rounded = self.cut(m, "rounded", result=round_and_pack(m, normalised))
        m.d.comb += self.o.eq(rounded.result)
        return m

    def _capture(self, m: Module) -> SimpleNamespace:
        a, b = self.i.a, self.i.b
        if self.subnormal_operands:
            a_zero = ~(a.exponent.any() | a.fraction.any())
            b_zero = ~(b.exponent.any() | b.fraction.any())
        else:
            a_zero, b_zero = ~a.exponent.any(), ~b.exponent.any()
        any_nan = (a.exponent.all() & a.fraction.any()) | (b.exponent.all() & b.fraction.any())
        infinite = a.exponent.all() | b.exponent.all()
        zero = a_zero | b_zero
        return self.cut(
            m, "captured",
            a=significand(a)[self._zeros[0] :], b=significand(b)[self._zeros[1] :],
            a_exponent=self._exponent(a), b_exponent=self._exponent(b), sign=a.sign ^ b.sign,
            zero=zero, infinite=infinite, nan=any_nan | (infinite & zero),
        )  # fmt: skip

    def _exponent(self, x: Any) -> Any:
        """The exponent field, which counts as 1 below 2^-126."""
        if not self.subnormal_operands:
            return x.exponent
        return Cat(x.exponent[0] | ~x.exponent.any(), x.exponent[1:])
