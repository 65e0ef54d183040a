"""The lanes: each mode chains multipliers, adders and table functions of a lane its own way.

mode    result (cycles after the operands; A, M, E, R, C are the units' latencies)
add     x + y                                      A
stat    x * y; and x * x for the sums              M
quant   int8(x * y * factor)                       2M + C
rope    x * y -+ partner * z                       M + A
soft    e = exp(x - factor), masked, for the sums  A + E
        int8(e * y * inverse)                      A + E + 2M + C
silu    x * recip(1 + exp(-x)) * y                 E + A + R + 2M
relu    max(x, 0)                                  2M
gelu    x * recip(1 + exp(-z(x)))                  4M + A, then as silu without y
"""

from enum import IntEnum
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.add import FloatAdd
from flightllm.hw.floating.exponential import FloatExp
from flightllm.hw.floating.integer import FloatToInt8
from flightllm.hw.floating.layout import Float32
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.pipeline import delay
from flightllm.hw.floating.table import FloatRecip
from flightllm.hw.sharing import shared
from flightllm.spec.encoding import float_bits

__all__ = ["Lane", "LaneMode", "Latencies", "PastValues"]

ONE = float_bits(1.0)
CUBE = float_bits(0.044715)
TWICE_ROOT = float_bits(1.5957692)
CONVERT = 2


class LaneMode(IntEnum):
    """What the lanes compute; fixed while an instruction's pass runs."""

    ADD = 0
    STAT = 1
    QUANT = 2
    ROPE = 3
    SOFT = 4
    SILU = 5
    RELU = 6
    GELU = 7


class Latencies:
    """Cycles of the units and of every mode's results.

    Parameters
    ----------
    add, mul : latencies of `FloatAdd` and `FloatMul`. words : of a group that a lane serves, one
        after the other; results of a group are there with that of its last word.
    """

    def __init__(self, add: int, mul: int, words: int = 1) -> None:
        self.add, self.mul, self.later = add, mul, words - 1
        # As FloatExp and FloatRecip state them; Lane asserts it.
        self.exp, self.recip = 4 * add + 3 * mul + 6, 2 * (add + mul) + 3
        self.front = 4 * mul + add
        sigmoid = self.exp + add + self.recip
        result = {
            LaneMode.ADD: add,
            LaneMode.STAT: mul,
            LaneMode.QUANT: 2 * mul + CONVERT,
            LaneMode.ROPE: mul + add,
            LaneMode.SOFT: add + self.exp + 2 * mul + CONVERT,
            LaneMode.SILU: sigmoid + 2 * mul,
            LaneMode.RELU: 2 * mul,
            LaneMode.GELU: self.front + sigmoid + 2 * mul,
        }
        summand = {LaneMode.STAT: mul, LaneMode.SOFT: add + self.exp}
        self.result = {mode: cycles + self.later for mode, cycles in result.items()}
        self.summand = {mode: cycles + self.later for mode, cycles in summand.items()}
        self.x_again = {LaneMode.SILU: sigmoid, LaneMode.GELU: self.front + sigmoid}
        self.y_again = {LaneMode.SOFT: add + self.exp, LaneMode.SILU: sigmoid + mul}
        self.longest = max(self.result.values())


class PastValues(wiring.Component):
    """What a signal was, a chosen number of cycles ago: a ring in memory instead of registers.

    Parameters
    ----------
    width : bits. depth : cycles it can look back, at most.

    Members
    -------
    i : In, the signal. ago : In, cycles to look back, at least 2; steady while it matters.
    o : Out, `i` as it was `ago` cycles before.
    """

    def __init__(self, width: int, depth: int) -> None:
        self._ring = 1 << (depth - 1).bit_length()
        super().__init__({"i": In(width), "ago": In(range(self._ring)), "o": Out(width)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.ring = ring = Memory(shape=len(self.i), depth=self._ring, init=[])
        write, read = ring.write_port(), ring.read_port()
        place = Signal(range(self._ring))
        m.d.sync += place.eq(place + 1)
        m.d.comb += [
            write.addr.eq(place), write.data.eq(self.i), write.en.eq(1),
            read.addr.eq((place - self.ago + 1)[: len(place)]), read.en.eq(1),
            self.o.eq(read.data),
        ]  # fmt: skip
        return m


@shared()
class Lane(wiring.Component):
    """One lane.

    Parameters
    ----------
    latencies : of its units.

    Members
    -------
    mode : In(LaneMode). x, y : In, operands. z, partner : In, rope's second pair; minus : its sign,
    when the products are there.
    keep : In, the element counts, in the cycle of the summand (soft).
    x_again, y_again : In, the operands as they were `Latencies.x_again` and `y_again` ago.
    factor : In, what soft subtracts. inverse : In, the quantiser's factor. narrow : In, +-7.
    value : Out, float result (add, rope, silu, relu, gelu); stat's x * y. square : Out, stat's
    x * x. power : Out, soft's e. level : Out(signed(8)), quantised result.
    """

    def __init__(self, latencies: Latencies) -> None:
        self.latencies = latencies
        floats = ("x", "y", "z", "partner", "x_again", "y_again", "factor", "inverse")
        super().__init__(
            {
                "mode": In(LaneMode),
                "minus": In(1),
                "keep": In(1),
                "narrow": In(1),
                **dict.fromkeys(floats, In(Float32)),
                **dict.fromkeys(("value", "square", "power"), Out(Float32)),
                "level": Out(signed(8)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        add, mul = self.latencies.add, self.latencies.mul
        m.submodules.mul_x = mul_x = FloatMul(mul)
        m.submodules.mul_y = mul_y = FloatMul(mul)
        m.submodules.add_x = add_x = FloatAdd(add)
        m.submodules.exp = exp = FloatExp(add, mul)
        m.submodules.recip = recip = FloatRecip(add, mul)
        m.submodules.convert = convert = FloatToInt8(CONVERT)
        assert (exp.latency, recip.latency) == (self.latencies.exp, self.latencies.recip)
        for unit in (mul_x, mul_y, add_x, exp, recip, convert):
            m.d.comb += unit.en.eq(1)
        front = self._gelu_front(m)
        # Where gelu's front takes the second multiplier, and relu needs none, the result waits.
        waited = delay(m, Const(1), mul_x.o, mul, "waited")
        kept = Signal(Float32)
        m.d.comb += [
            kept.eq(Mux(self.keep, exp.o.as_value(), 0)),
            recip.i.eq(add_x.o),
            convert.i.value.eq(mul_y.o),
            convert.i.narrow.eq(self.narrow),
            self.level.eq(convert.o),
            self.power.eq(kept),
            self.square.eq(mul_y.o),
            add_x.i.subtract.eq(
                ((self.mode == LaneMode.ROPE) & self.minus) | (self.mode == LaneMode.SOFT)
            ),
        ]
        for port, *choices in self._routes(mul_x, mul_y, add_x, exp, recip.o, front):
            m.d.comb += port.eq(_chosen(*choices))
        m.d.comb += self.value.eq(_chosen(
            (mul_y.o, 0), (add_x.o, self._in(LaneMode.ADD, LaneMode.ROPE)),
            (mul_x.o, self._in(LaneMode.STAT)), (waited, self._in(LaneMode.RELU, LaneMode.GELU)),
        ))  # fmt: skip
        return m

    def _in(self, *modes: LaneMode) -> Value:
        return Cat(self.mode == mode for mode in modes).any()

    def _routes(self, mul_x: Any, mul_y: Any, add_x: Any, exp: Any, recip: Any,
                front: Any) -> list[tuple[Any, ...]]:  # fmt: skip
        """Ports of units: what each takes, and what instead, under which condition."""
        _, stat, _, rope, soft, silu, relu, gelu = (self._in(mode) for mode in LaneMode)
        sigmoid = silu | gelu
        return [
            (mul_x.i.a, (self.x, 0), (exp.o, soft & self.keep), (self.x_again, sigmoid),
             (Const(0, 32), (soft & ~self.keep) | (relu & self.x.sign))),
            (mul_x.i.b, (self.y, 0), (self.y_again, soft), (recip, sigmoid), (ONE, relu)),
            (mul_y.i.a, (mul_x.o, 0), (self.x, stat), (self.partner, rope), (front, gelu)),
            (mul_y.i.b, (self.inverse, 0), (self.x, stat), (self.z, rope), (self.y_again, silu),
             (TWICE_ROOT, gelu)),
            (add_x.i.a, (self.x, 0), (mul_x.o, rope), (ONE, sigmoid)),
            (add_x.i.b, (self.y, 0), (mul_y.o, rope), (self.factor, soft), (exp.o, sigmoid)),
            (exp.i, (add_x.o, 0), (_negative(self.x), silu), (_negative(mul_y.o), gelu)),
        ]  # fmt: skip

    def _gelu_front(self, m: Module) -> Any:
        """x + x * x * x * 0.044715, 3 mul + add cycles later."""
        mul, add = self.latencies.mul, self.latencies.add
        m.submodules.front_square = square = FloatMul(mul)
        m.submodules.front_cube = cube = FloatMul(mul)
        m.submodules.front_part = part = FloatMul(mul)
        m.submodules.front_sum = total = FloatAdd(add)
        x1 = delay(m, Const(1), self.x, mul, "front_x")
        x3 = delay(m, Const(1), x1, 2 * mul, "front_later")
        m.d.comb += [unit.en.eq(1) for unit in (square, cube, part, total)]
        m.d.comb += [
            square.i.a.eq(self.x), square.i.b.eq(self.x),
            cube.i.a.eq(x1), cube.i.b.eq(square.o),
            part.i.a.eq(cube.o), part.i.b.eq(CUBE),
            total.i.a.eq(x3), total.i.b.eq(part.o),
        ]  # fmt: skip
        return total.o


def _negative(x: data.View) -> Any:
    return Cat(x.fraction, x.exponent, ~x.sign)


def _chosen(*choices: tuple[Any, Any]) -> Value:
    """The value whose condition holds, else the first; no two hold at a time.

    Selected by its number: four choices are one look-up table a bit.
    """
    values = [Value.cast(value) for value, _ in choices]
    bits = (len(choices) - 1).bit_length()
    values += [values[0]] * ((1 << bits) - len(values))
    for bit in range(bits):
        number = Cat(condition for k, (_, condition) in enumerate(choices) if k >> bit & 1).any()
        values = [Mux(number, odd, even) for even, odd in zip(values[::2], values[1::2])]
    return values[0]
