"""F(a + b) and F(a - b)."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data

from flightllm.hw.floating.layout import Float32, magnitude, significand
from flightllm.hw.floating.pipeline import Datapath
from flightllm.hw.floating.rounding import (
    leading_bytes,
    normalise_byte,
    round_and_pack,
    shift_right,
)

__all__ = ["AddOperands", "FloatAdd", "FloatAddPositive", "FloatAddSmall"]

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
    BOUNDED = False
    ORDER = ("rounded", "summed", "ordered", "counted", "aligned", "normalised")

    def __init__(self, latency: int = 5) -> None:
        super().__init__(AddOperands, Float32, latency)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        summed = self._sum(m, self._order(m))
        normalised = self.cut(m, "normalised", **self._normalise(m, summed))
        rounded = self.cut(
            m, "rounded", result=round_and_pack(m, normalised, fine=False, bounded=self.BOUNDED)
        )
        m.d.comb += self.o.eq(rounded.result)
        return m

    @staticmethod
    def _rest(x: SimpleNamespace) -> dict[str, Any]:
        """What goes with the magnitudes through the cuts."""
        return {name: getattr(x, name) for name in (
            "exponent", "sign", "differ", "infinite", "nan",
        )}  # fmt: skip

    def _signs(self) -> tuple[Any, Any]:
        """Of a, and of what is added to it."""
        return self.i.a.sign, self.i.b.sign ^ self.i.subtract

    def _order(self, m: Module) -> SimpleNamespace:
        """The larger magnitude first, and how far the smaller lies below it."""
        a, b = self.i.a, self.i.b
        a_sign, b_sign = self._signs()
        swap, large, small = Signal(), Signal(Float32), Signal(Float32)
        # A multiplexer and a subtraction share a look-up table a bit.
        exponent, below = Signal(8), Signal(8)
        m.d.comb += [
            swap.eq(magnitude(b) > magnitude(a)),
            large.eq(Mux(swap, b.as_value(), a.as_value())),
            small.eq(Mux(swap, a.as_value(), b.as_value())),
            # Below 2^-126 the exponent field is 0, but counts as 1.
            exponent.eq(Cat(large.exponent[0] | ~large.exponent.any(), large.exponent[1:])),
            below.eq(Cat(small.exponent[0] | ~small.exponent.any(), small.exponent[1:])),
        ]
        differ, equal = a_sign ^ b_sign, ~(exponent ^ below).any()
        infinite = large.exponent.all()
        return self.cut(
            m, "ordered",
            large=significand(large), small=significand(small), exponent=exponent,
            distance=(exponent - below)[:8], sign=Mux(swap, b_sign, a_sign), differ=differ,
            infinite=infinite,
            # A NaN is the larger magnitude; two infinities have the same exponent.
            nan=infinite & (large.fraction.any() | (differ & equal)),
        )  # fmt: skip

    def _sum(self, m: Module, x: SimpleNamespace) -> SimpleNamespace:
        """The sum with guard, round and sticky bit below it and a carry above: 28 bits."""
        # 31 places or more below a number of 24 bits only the sticky bit is left.
        distance = x.distance[:5] | x.distance[5:].any().replicate(5)
        near, lost = shift_right(m, Cat(Const(0, 3), x.small), distance, "align")
        aligned = self.cut(
            m, "aligned",
            large=x.large, small=Cat(near[0] | lost, near[1:]), **self._rest(x),
        )  # fmt: skip
        # One adder: the difference is large + ~small + 1, the 1 being carried in from below.
        small = aligned.small ^ aligned.differ.replicate(27)
        total = Signal(29)
        m.d.comb += total.eq(
            Cat(Const(1, 4), aligned.large, Const(0, 1))
            + Cat(aligned.differ, small, aligned.differ)
        )
        rest = self._rest(aligned) | {"exponent": Cat(aligned.exponent, Const(0, 2)).as_signed()}
        return self.cut(m, "summed", total=total[1:], **rest)

    def _normalise(self, m: Module, x: SimpleNamespace) -> dict[str, Any]:
        """Significand, guard, sticky and exponent: what `round_and_pack` takes."""
        value, count = leading_bytes(m, x.total, "normalise")
        counted = self.cut(m, "counted", value=value, bytes=count, **self._rest(x))
        value, fine = normalise_byte(m, counted.value, "normalise")
        zeros, empty = Cat(fine, counted.bytes), ~value[-1]
        return _shifted(counted, value) | {
            "exponent": (counted.exponent + 1 - zeros)[:10].as_signed(), "zero": empty,
            # An exact zero is +0, but for the sum of two -0.
            "sign": counted.sign & ~(empty & counted.differ),
        }


class FloatAddPositive(FloatAdd):
    """F(a + b) of numbers that are not negative: nothing cancels. Signs are not looked at.

    Parameters, members : of `FloatAdd`; `subtract` must be 0.
    """

    def _signs(self) -> tuple[Any, Any]:
        return Const(0, 1), Const(0, 1)

    def _normalise(self, m: Module, x: SimpleNamespace) -> dict[str, Any]:
        x = self.cut(m, "counted", total=x.total, **self._rest(x))
        carry = x.total[27]
        return _shifted(x, Mux(carry, x.total, x.total << 1)[:28]) | {
            "exponent": (x.exponent + carry)[:10].as_signed(),
            "zero": ~x.total[26:].any(),  # below 2^-126, which flushes
        }


class FloatAddSmall(FloatAdd):
    """F(a + b) where a is normal, |b| below |a| / 4, and the result far from both ends: nothing is
    ordered, and the result moves by one place at most.

    Parameters, members : of `FloatAdd`.
    """

    BOUNDED = True

    def _order(self, m: Module) -> SimpleNamespace:
        a, b = self.i.a, self.i.b
        a_sign, b_sign = self._signs()
        return self.cut(
            m, "ordered",
            large=Cat(a.fraction, Const(1, 1)), small=significand(b), exponent=a.exponent,
            distance=(a.exponent - b.exponent)[:8], sign=a_sign, differ=a_sign ^ b_sign,
            infinite=Const(0, 1), nan=Const(0, 1),
        )  # fmt: skip

    def _normalise(self, m: Module, x: SimpleNamespace) -> dict[str, Any]:
        x = self.cut(m, "counted", total=x.total, **self._rest(x))
        up, stays = x.total[27], x.total[26]
        shifted = Mux(up, x.total, Mux(stays, x.total << 1, x.total << 2))[:28]
        return _shifted(x, shifted) | {
            "exponent": (x.exponent + up - ~(up | stays))[:10].as_signed(), "zero": Const(0, 1),
        }  # fmt: skip


def _shifted(x: SimpleNamespace, value: Any) -> dict[str, Any]:
    """What `round_and_pack` takes of a normalised total of 28 bits."""
    return {
        "significand": value[4:], "guard": value[3], "sticky": value[:3].any(),
        "sign": x.sign, "infinite": x.infinite, "nan": x.nan,
    }  # fmt: skip
