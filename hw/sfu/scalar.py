"""The scalars of a row: scale and factor of a quantiser, r of a norm, the factor of a softmax."""

from enum import IntEnum
from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.add import FloatAdd
from flightllm.hw.floating.half import FloatToHalf, HalfToFloat
from flightllm.hw.floating.layout import Float32
from flightllm.hw.floating.mul import FloatMul
from flightllm.hw.floating.table import FloatRecip, FloatRsqrt
from flightllm.spec.encoding import float_bits

__all__ = ["ScalarProgram", "Scalars"]

FLOOR = float_bits(2.0**-64)


class ScalarProgram(IntEnum):
    """What to compute.

    QUANT: inverse = recip(max(a, 2^-64)) * qmax, then scale = a * alpha (rounded to fp16 with
    `half`). NORM: behind QUANT, scale times rsqrt(sum * inv_n + eps).
    SOFT: scale = (a * alpha) * recip(sum).
    """

    QUANT = 0
    NORM = 1
    SOFT = 2


class _Step(IntEnum):
    MUL = 0
    ADD = 1
    RECIP = 2
    RSQRT = 3
    HALF = 4


_REGISTERS = (
    "amax", "bounded", "alpha", "inv_n", "eps", "total", "qmax", "inverse", "scale", "work",
)  # fmt: skip
# (unit, first operand, second operand, result)
_INVERSE = [(_Step.RECIP, "bounded", "bounded", "work"), (_Step.MUL, "work", "qmax", "inverse")]
_SCALE = [(_Step.MUL, "amax", "alpha", "scale")]
_PROGRAMS = {
    ScalarProgram.QUANT: [*_INVERSE, *_SCALE, (_Step.HALF, "scale", "scale", "scale")],
    ScalarProgram.NORM: [
        (_Step.MUL, "total", "inv_n", "work"), (_Step.ADD, "work", "eps", "work"),
        (_Step.RSQRT, "work", "work", "work"), (_Step.MUL, "scale", "work", "scale"),
    ],
    ScalarProgram.SOFT: [
        *_SCALE, (_Step.RECIP, "total", "total", "work"), (_Step.MUL, "scale", "work", "scale"),
    ],
}  # fmt: skip


class Scalars(wiring.Component):
    """Runs one of `ScalarProgram`, one unit at a time.

    Parameters
    ----------
    add, mul : latencies of `FloatAdd` and `FloatMul`.

    Members
    -------
    start : In, a pulse. program : In. half : In, round the scale to fp16 (QUANT).
    amax, alpha, inv_n, eps, total, qmax : In, steady from start to done.
    inverse, scale : Out, hold until another is there. ready : Out, a pulse: the inverse is there in
    the next cycle. done : Out, a pulse.
    """

    def __init__(self, add: int, mul: int) -> None:
        self.add, self.mul = add, mul
        inputs = ("amax", "alpha", "inv_n", "eps", "total", "qmax")
        super().__init__(
            {
                "start": In(1),
                "program": In(ScalarProgram),
                "half": In(1),
                **dict.fromkeys(inputs, In(Float32)),
                "inverse": Out(Float32),
                "scale": Out(Float32),
                "ready": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.mul_unit = mul = FloatMul(self.mul)
        m.submodules.add_unit = add = FloatAdd(self.add)
        m.submodules.recip = recip = FloatRecip(self.add, self.mul)
        m.submodules.rsqrt = rsqrt = FloatRsqrt(self.add, self.mul)
        m.submodules.to_half = to_half = FloatToHalf(1)
        m.submodules.from_half = from_half = HalfToFloat(1)
        work = Signal(Float32)
        held = {"inverse": self.inverse, "scale": self.scale, "work": work}
        bounded = Mux(self.amax.as_value() < FLOOR, FLOOR, self.amax.as_value())
        values = [
            held[name] if name in held else bounded if name == "bounded" else getattr(self, name)
            for name in _REGISTERS
        ]
        sources = Array(getattr(value, "as_value", lambda v=value: v)() for value in values)

        a, b = Signal(32), Signal(32)
        results = {
            _Step.MUL: mul.o, _Step.ADD: add.o, _Step.RECIP: recip.o, _Step.RSQRT: rsqrt.o,
            _Step.HALF: Mux(self.half, from_half.o.as_value(), a),
        }  # fmt: skip
        waits = {
            _Step.MUL: mul.latency, _Step.ADD: add.latency, _Step.RECIP: recip.latency,
            _Step.RSQRT: rsqrt.latency, _Step.HALF: 2,
        }  # fmt: skip
        m.d.comb += [part.en.eq(1) for part in (mul, add, recip, rsqrt, to_half, from_half)]
        m.d.comb += [
            mul.i.a.eq(a), mul.i.b.eq(b), add.i.a.eq(a), add.i.b.eq(b), recip.i.eq(a),
            rsqrt.i.eq(a), to_half.i.eq(a), from_half.i.eq(to_half.o),
        ]  # fmt: skip

        steps = [step for program in ScalarProgram for step in _PROGRAMS[program]]
        starts, ends, at = [], [], 0
        for program in ScalarProgram:
            starts.append(at)
            at += len(_PROGRAMS[program])
            ends.append(at - 1)
        place, wait, busy = Signal(range(at + 1)), Signal(8), Signal()
        unit = Signal(_Step)
        code = Array(int(step[0]) for step in steps)
        first = Array(_REGISTERS.index(step[1]) for step in steps)
        second = Array(_REGISTERS.index(step[2]) for step in steps)
        dest = Array(_REGISTERS.index(step[3]) for step in steps)
        m.d.comb += [
            unit.eq(code[place]), a.eq(sources[first[place]]), b.eq(sources[second[place]]),
        ]  # fmt: skip
        length = Array(waits[step] for step in _Step)
        outcome = Array(getattr(r, "as_value", lambda r=r: r)() for r in results.values())
        with m.If(self.start):
            m.d.sync += [busy.eq(1), wait.eq(0), place.eq(Array(starts)[self.program])]
        with m.Elif(busy):
            m.d.sync += wait.eq(wait + 1)
            with m.If(wait == length[unit]):
                m.d.sync += [wait.eq(0), place.eq(place + 1)]
                for name, register in held.items():
                    with m.If(dest[place] == _REGISTERS.index(name)):
                        m.d.sync += register.eq(outcome[unit])
                m.d.comb += self.ready.eq(dest[place] == _REGISTERS.index("inverse"))
                last = Array(ends)[self.program]
                # Nothing to round: a program that ends with rounding is over a step sooner.
                sooner = ~self.half & (Array(int(step[0]) for step in steps)[last] == _Step.HALF)
                with m.If(place == Mux(sooner, last - 1, last)):
                    m.d.sync += busy.eq(0)
                    m.d.comb += self.done.eq(1)
        return m
