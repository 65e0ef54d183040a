"""Errors planted in the float units, each by one change to the text of one source file."""

from __future__ import annotations

from types import ModuleType

import source_mutation
from source_mutation import Mutation

from flightllm.hw import floating

__all__ = ["MUTATIONS", "STREAM_MUTATIONS", "Mutation", "mutated"]


_EVEN = Mutation("rounding.py", "guard & (sticky | last)", "guard", "ties away from zero")
_TRUNCATE = Mutation("rounding.py", "guard & (sticky | last)", "guard & 0", "truncation")
_LATE_C1 = Mutation("table.py", "c.c1, self.mul,", "c.c1, self.mul + 1,", "c1 one cycle late")
_LOST_D = Mutation("table.py", "d, self.mul + self.add,", "d, self.mul,", "d of a later operand")
_DISTANCE = Mutation("table.py", "~x.fraction[15]", "x.fraction[15]", "d from the segment's ends")

MUTATIONS = {
    "add": [
        _EVEN,
        _TRUNCATE,
        Mutation("add.py", "Cat(near[0] | lost, near[1:])", "near", "no sticky bit"),
        Mutation("add.py", "counted.sign & ~(empty & counted.differ)", "counted.sign",
                 "sign of an exact zero"),
        Mutation("add.py", "small.exponent[0] | ~small.exponent.any()", "small.exponent[0]",
                 "exponent of a subnormal operand"),
        Mutation("rounding.py", "(x.exponent <= 0) & ~edge", "(x.exponent < 0) & ~edge",
                 "a subnormal result stays"),
        Mutation("add.py", "(differ & equal)", "0", "inf - inf"),
        Mutation("add.py", "Cat(aligned.differ, small, aligned.differ)",
                 "Cat(Const(0, 1), small, aligned.differ)", "one's complement"),
        Mutation("rounding.py", "value[width - 2 * k - 2 :", "value[width - 2 * k - 1 :",
                 "pairs of one bit"),
        Mutation("add.py", "x.distance[5:].any()", "x.distance[6:].any()", "shift by 32 is none"),
    ],
    "mul": [
        _EVEN,
        _TRUNCATE,
        Mutation("mul.py", "shifted[:23].any()", "shifted[22]", "sticky of one bit"),
        Mutation("rounding.py", "(x.exponent == 0) & x.significand.all()", "0",
                 "flush before rounding"),
        Mutation("rounding.py", "x.exponent >= 255", "x.exponent > 255", "overflow a power late"),
        Mutation("mul.py", "any_nan | (infinite & zero)", "any_nan", "zero times infinity"),
    ],
    "mul_exact": [
        Mutation("mul.py", "added.product[23:]", "added.product[40:]", "zeros counted in 8 bits"),
        Mutation("mul.py", "x.exponent[0] | ~x.exponent.any()", "x.exponent[0]",
                 "exponent of a subnormal operand"),
        Mutation("mul.py", "~(b.exponent.any() | b.fraction.any())", "~b.exponent.any()",
                 "one operand flushed"),
    ],
    "max": [
        Mutation("compare.py", "Mux(compared.a.sign, compared.below, compared.above)",
                 "compared.above", "negative numbers by magnitude"),
        Mutation("compare.py", "upper & ~compared.zeros", "upper", "+0 greater than -0"),
        Mutation("compare.py", "differ, compared.a.sign", "differ, compared.b.sign",
                 "the negative of two signs"),
        Mutation("compare.py", "magnitude(b) > magnitude(a)", "b.exponent > a.exponent",
                 "exponents only"),
    ],
    "int_to_float": [
        _EVEN,
        Mutation("integer.py", "wide[:-25].any()", "wide[-26]", "sticky of one bit"),
        Mutation("integer.py", "(inverted + sign)", "(inverted + 0)",
                 "one's complement"),
        Mutation("integer.py", "zero=~shifted[-1]", "zero=Const(0, 1)", "no zero"),
    ],
    "wide_to_float": [
        _TRUNCATE,
        Mutation("integer.py", "wide[:-25].any()", "Const(0, 1)", "no sticky bit"),
        Mutation("integer.py", "self.width - 1 + self.exponent", "self.width - 1 - self.exponent",
                 "factor inverted"),
    ],
    "to_int8": [
        _EVEN,
        Mutation("integer.py", "rounded.beyond | ", "", "wraps from 128 on"),
        Mutation("integer.py", "highest - 8, 8", "highest - 8, 7", "small numbers round to 1"),
        Mutation("integer.py", "right[:16].any() | lost", "lost", "sticky of the lost bits only"),
        Mutation("integer.py", "limit = Cat(Const(7, 3)", "limit = Cat(Const(6, 3)", "limit 6"),
    ],
    "to_half": [
        _EVEN,
        Mutation("half.py", "shifted.beyond | (total > LARGEST)", "shifted.beyond",
                 "rounds to infinity"),
        Mutation("half.py", "lowest - 12, 12", "lowest - 12, 11", "tiny numbers round up"),
        Mutation("half.py", "right[:12].any() | lost", "right[:12].any()",
                 "sticky of what stays only"),
    ],
    "from_half": [
        Mutation("half.py", "BIAS - HALF_BIAS - counted.zeros", "BIAS - HALF_BIAS - 1",
                 "subnormals not normalised"),
        Mutation("half.py", "Cat(Const(0, 14), shifted[:9])", "Cat(Const(0, 13), shifted[:10])",
                 "hidden bit stays"),
        Mutation("half.py", "with m.Elif(counted.zero):", "with m.Elif(0):", "no zero"),
        Mutation("half.py", "o.exponent.eq(255)", "o.exponent.eq(143)", "infinity is 65536"),
    ],
    "scale": [
        Mutation("scale.py", "(exponent == 0) & x.fraction.all()", "0", "flush before rounding"),
        Mutation("scale.py", "self.i.power < -126", "self.i.power < -127", "2^-127 is a number"),
        Mutation("scale.py", "exponent >= 255", "exponent > 255", "overflow a power late"),
        Mutation("scale.py", "exponent <= 0", "exponent < 0", "a subnormal result stays"),
    ],
    "recip": [
        _LATE_C1,
        _DISTANCE,
        Mutation("table.py", "return BIAS - x.exponent", "return BIAS - 1 - x.exponent",
                 "half of it"),
        Mutation("table.py", 'read.data, 1, "coeff', 'read.data, 2, "coeff',
                 "coefficients one cycle late"),
    ],
    "rsqrt": [
        _LOST_D,
        _DISTANCE,
        Mutation("table.py", "~x.exponent[0]", "x.exponent[0]", "halves of the table swapped"),
        Mutation("table.py", "-((x.exponent - Const(BIAS)).as_signed() >> 1)",
                 "-((x.exponent - Const(BIAS - 1)).as_signed() >> 1)", "exponent halved upwards"),
    ],
    "exp": [
        _TRUNCATE,
        Mutation("exponential.py", "(sign & ~broken)", "sign", "truncated, not floor"),
        Mutation("exponential.py", "f[middle + 1 :] | one.replicate(7)", "f[middle + 1 :]",
                 "f = 1 in the first segment"),
        Mutation("exponential.py", "(sign & ~up)", "sign", "1 + t truncated"),
        Mutation("exponential.py", "Mux(self.i.sign, LOWEST, HIGHEST)", "LOWEST",
                 "clamped to 104"),
    ],
}  # fmt: skip
"""By the names of floating_cases.CASES; none changes a payload's layout or a latency."""

STREAM_MUTATIONS = [
    Mutation("pipeline.py", "step.eq(self.o.ready | ~valid[-1])", "step.eq(1)", "never stalls"),
    Mutation("pipeline.py", "self.i.ready.eq(step)", "self.i.ready.eq(1)", "takes while stalled"),
    Mutation("pipeline.py", "(valid << 1) | self.i.valid", "(valid << 1) | 1", "idle is valid"),
    Mutation("pipeline.py", "self.o.valid.eq(valid[-1])", "self.o.valid.eq(valid[0])",
             "valid ahead of its payload"),
]  # fmt: skip


def mutated(mutation: Mutation) -> ModuleType:
    """A second copy of `hw.floating`, with the error in it."""
    return source_mutation.mutated(mutation, floating.__name__)
