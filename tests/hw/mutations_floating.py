"""Errors planted in the float units, each by one change to the text of one source file."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

import flightllm.hw
from flightllm.hw import floating

__all__ = ["MUTATIONS", "STREAM_MUTATIONS", "Mutation", "mutated"]

_PACKAGE = floating.__name__


@dataclass(frozen=True)
class Mutation:
    """In `file`, the text `old`, which stands there once, becomes `new`."""

    file: str
    old: str
    new: str
    error: str


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
        Mutation("add.py", "Mux(empty, counted.zero_sign, counted.sign)", "counted.sign",
                 "sign of an exact zero"),
        Mutation("add.py", "a.exponent[0] | ~a.exponent.any()", "a.exponent[0]",
                 "exponent of a subnormal operand"),
        Mutation("rounding.py", "(x.exponent <= 0) & ~edge", "(x.exponent < 0) & ~edge",
                 "a subnormal result stays"),
        Mutation("add.py", "(differ & a.exponent.all() & b.exponent.all())", "0", "inf - inf"),
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
        Mutation("integer.py", "Mux(sign, -self.i, self.i)", "Mux(sign, ~self.i, self.i)",
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
        Mutation("exponential.py", "-whole - broken", "-whole", "truncated, not floor"),
        Mutation("exponential.py", "entry.eq(127)", "entry.eq(0)", "f = 1 in the first segment"),
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


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a changed text; keeps nothing on disk."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self.mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        text = self.get_data(self.path).decode()
        if self.path.endswith(f"/{self.mutation.file}"):
            count = text.count(self.mutation.old)
            if count != 1:
                raise ValueError(f"{self.mutation}: {count} places, not 1")
            text = text.replace(self.mutation.old, self.mutation.new)
        return compile(text, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[:3] != _PACKAGE.split("."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None and spec.origin is not None
        return importlib.util.spec_from_file_location(
            fullname,
            spec.origin,
            loader=_Loader(fullname, spec.origin, self.mutation),
            submodule_search_locations=spec.submodule_search_locations,
        )


def _loaded() -> dict[str, ModuleType]:
    return {n: m for n, m in sys.modules.items() if f"{n}.".startswith(f"{_PACKAGE}.")}


def mutated(mutation: Mutation) -> ModuleType:
    """A second copy of the package, with the error in it; the first stays imported."""
    original = _loaded()
    finder = _Finder(mutation)
    for name in original:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(_PACKAGE)
    finally:
        sys.meta_path.remove(finder)
        for name in _loaded():
            del sys.modules[name]
        sys.modules.update(original)
        flightllm.hw.floating = original[_PACKAGE]
