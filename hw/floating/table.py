"""Table functions: a ROM of coefficients, a quadratic polynomial, and what stands on them."""

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory
from numpy.typing import NDArray

from flightllm.hw.floating.add import FloatAddSmall
from flightllm.hw.floating.integer import IntToFloat
from flightllm.hw.floating.layout import BIAS, Float32
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.pipeline import Datapath, delay
from flightllm.hw.floating.scale import FloatScale
from flightllm.spec import sfu_tables

__all__ = ["Coefficients", "FloatRecip", "FloatRsqrt", "Quadratic", "coefficient_rom"]

Coefficients = data.StructLayout({"c0": Float32, "c1": Float32, "c2": Float32})
LARGEST_D = 2.0**-8
"""Half a segment of a table, with x between 1 and 2, or f between 0 and 1."""
Terms = data.StructLayout({"c": Coefficients, "d": Float32})


def coefficient_rom(table: NDArray[np.float32]) -> Memory:
    """A ROM of a table of `spec.sfu_tables` [entries, 3], one `Coefficients` an address."""
    c0, c1, c2 = np.abs(table).T.astype(np.float64)
    inner = LARGEST_D * c2
    assert (4 * inner < c1).all() and (4 * LARGEST_D * (c1 + inner) < c0).all()
    rows = [
        Coefficients.from_bits(sum(int(word) << (32 * k) for k, word in enumerate(row)))
        for row in table.view(np.uint32)
    ]
    return Memory(shape=Coefficients, depth=len(rows), init=rows)


class Quadratic(Datapath):
    """F(c0 + F(d * F(c1 + F(d * c2)))), for the tables of `spec.sfu_tables` and their d: each
    product is far smaller than what it is added to (`coefficient_rom` asserts it).

    Parameters
    ----------
    add, mul : latencies of `FloatAddSmall` and `FloatMul`; its own is twice their sum.
    d_bits : significant bits of d.

    Members
    -------
    i : In(Terms), coefficients c and argument d. o : Out(Float32).
    """

    def __init__(self, add: int = 5, mul: int = 4, d_bits: int = 24) -> None:
        self.add, self.mul, self.d_bits = add, mul, d_bits
        super().__init__(Terms, Float32, 2 * (add + mul))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.mul_c2 = mul_c2 = FloatMul(self.mul, b_bits=self.d_bits)
        m.submodules.add_c1 = add_c1 = FloatAddSmall(self.add)
        m.submodules.mul_d = mul_d = FloatMul(self.mul, b_bits=self.d_bits)
        m.submodules.add_c0 = add_c0 = FloatAddSmall(self.add)
        c, d = self.i.c, self.i.d
        m.d.comb += [
            mul_c2.i.a.eq(c.c2),
            mul_c2.i.b.eq(d),
            add_c1.i.b.eq(mul_c2.o),
            add_c1.i.a.eq(delay(m, self.en, c.c1, self.mul, "c1")),
            mul_d.i.a.eq(add_c1.o),
            mul_d.i.b.eq(delay(m, self.en, d, self.mul + self.add, "d")),
            add_c0.i.b.eq(mul_d.o),
            add_c0.i.a.eq(delay(m, self.en, c.c0, 2 * self.mul + self.add, "c0")),
            self.o.eq(add_c0.o),
        ]
        m.d.comb += [unit.en.eq(self.en) for unit in (mul_c2, add_c1, mul_d, add_c0)]
        return m


class _FractionTable(Datapath):
    """A function of x by its top 7 fraction bits, scaled by a power of two of x's exponent.

    d, the distance from the middle of the segment, is the low 16 fraction bits less 2^15 in
    units of 2^-23: exact. The sign of x, and whether it is infinite or a NaN, are not looked at.
    """

    TABLE = np.empty((0, 3), np.float32)

    def __init__(self, add: int = 5, mul: int = 4) -> None:
        self.add, self.mul = add, mul
        self.polynomial_latency = 2 * (add + mul)
        super().__init__(Float32, Float32, 2 + self.polynomial_latency + 1)

    def _entry(self, x: Any) -> Any:
        """Address of the ROM."""
        raise NotImplementedError

    def _power(self, x: Any) -> Any:
        """The power of two by which the polynomial's value is scaled."""
        raise NotImplementedError

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.rom = rom = coefficient_rom(self.TABLE)
        m.submodules.distance = distance = IntToFloat(16, exponent=-23, latency=2)
        m.submodules.polynomial = polynomial = Quadratic(
            self.add, self.mul, d_bits=16
        )
        m.submodules.scale = scale = FloatScale()
        read = rom.read_port()
        x = self.i
        power = Signal(signed(9))
        m.d.comb += [
            read.en.eq(self.en),
            read.addr.eq(self._entry(x)),
            # Less 2^15: the top bit of the offset, inverted, is the sign.
            distance.i.eq(Cat(x.fraction[:15], ~x.fraction[15])),
            polynomial.i.c.eq(delay(m, self.en, read.data, 1, "coefficients")),
            polynomial.i.d.eq(distance.o),
            power.eq(self._power(x)),
            scale.i.value.eq(polynomial.o),
            scale.i.power.eq(delay(m, self.en, power, self.latency - 1, "power")),
            self.o.eq(scale.o),
        ]
        m.d.comb += [unit.en.eq(self.en) for unit in (distance, polynomial, scale)]
        return m


class FloatRecip(_FractionTable):
    """recip(x) of docs/number-formats.md, for x >= 2^-126.

    A zero counts as 2^-127 (about 2^127 comes out), an infinity or NaN gives +0, a negative x
    counts as its magnitude.

    Parameters
    ----------
    add, mul : latencies of the adders and multipliers; its own is 2 (add + mul) + 3.

    Members
    -------
    i : In(Float32). o : Out(Float32).
    """

    TABLE = sfu_tables.RECIP

    def _entry(self, x: Any) -> Any:
        return x.fraction[16:]

    def _power(self, x: Any) -> Any:
        return BIAS - x.exponent


class FloatRsqrt(_FractionTable):
    """rsqrt(x) of docs/number-formats.md, for x >= 2^-126.

    A zero counts as 2^-127 (about 2^63.5 comes out), an infinity or NaN gives about 2^-64, a
    negative x counts as its magnitude.

    Parameters
    ----------
    add, mul : latencies of the adders and multipliers; its own is 2 (add + mul) + 3.

    Members
    -------
    i : In(Float32). o : Out(Float32).
    """

    TABLE = sfu_tables.RSQRT

    def _entry(self, x: Any) -> Any:
        # The exponent is odd where the biased one is even: the table's second half.
        return Cat(x.fraction[16:], ~x.exponent[0])

    def _power(self, x: Any) -> Any:
        return -((x.exponent - Const(BIAS)).as_signed() >> 1)
