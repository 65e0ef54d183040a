"""For each float unit: operands that try it, and what spec.numerics says to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Shape, Value, unsigned
from amaranth.lib import data

from flightllm.hw import floating
from flightllm.hw.floating.pipeline import delay
from flightllm.sim.rtl.vectors import pack
from flightllm.spec import numerics

Array = Any
Fields = list[tuple[Array, int]]  # values and width of each field of a payload

CACHE = Path(__file__).parents[2] / "build" / "vectors"

_EXPONENTS = (0, 1, 2, 12, 23, 24, 25, 102, 103, 112, 125, 126, 127, 128, 133, 142, 150, 151, 253,
              254, 255)  # fmt: skip
_FRACTIONS = (0, 1, 2, 0x1000, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF)
SPECIAL = np.array(
    [s << 31 | e << 23 | f for s in (0, 1) for e in _EXPONENTS for f in _FRACTIONS], np.uint32
).view(np.float32)
"""Zeros, subnormals, the smallest, the largest, ties, infinities, NaNs of all sorts."""


def bits(x: Array) -> Array:
    return np.asarray(x, np.float32).view(np.uint32)


def normal(n: int, rng: Any) -> Array:
    """Any bits: half of them anything, half within 2^-8 .. 2^8."""
    x = rng.integers(0, 1 << 32, n, dtype=np.uint32)
    near = (x & 0x807FFFFF) | rng.integers(119, 136, n, dtype=np.uint32) << 23
    return np.where(np.arange(n) % 2, x, near).astype(np.uint32).view(np.float32)


def special_pairs() -> tuple[Array, Array]:
    return np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))


def pairs(n: int, rng: Any) -> tuple[Array, Array]:
    """Equal parts: anything, cancellation, near 2^-126 (sum and product), near overflow."""
    a, b = bits(normal(n, rng)).copy(), bits(normal(n, rng)).copy()
    kind = np.arange(n) % 5
    small = rng.integers(0, 1 << 26, n, dtype=np.uint32) >> rng.integers(0, 26, n, dtype=np.uint32)
    b = np.where(kind == 1, a ^ small ^ np.uint32(1 << 31), b)  # sums cancel
    tiny = rng.integers(0, 4, n, dtype=np.uint32)
    a = np.where(kind == 2, a & 0x807FFFFF | tiny << 23, a)
    b = np.where(kind == 2, b & 0x807FFFFF | (tiny ^ 1) << 23, b)
    exponent = a >> 23 & 255
    partner = (127 - 126 - 1 + 127 - exponent.astype(np.int64) + rng.integers(-1, 2, n)) & 255
    b = np.where(kind == 3, b & 0x807FFFFF | partner.astype(np.uint32) << 23, b)
    high = (253 + 127 - exponent.astype(np.int64) + rng.integers(0, 3, n)).clip(250, 254)
    b = np.where(kind == 4, b & 0x807FFFFF | high.astype(np.uint32) << 23, b)
    a = np.where(kind == 4, a & 0x807FFFFF | rng.integers(125, 255, n).astype(np.uint32) << 23, a)
    return a.astype(np.uint32).view(np.float32), b.astype(np.uint32).view(np.float32)


def edge_products(rng: Any) -> tuple[Array, Array]:
    """Pairs whose exact product lies within a few last places of 2^-126, found by division."""
    a = (
        rng.integers(0, 1 << 23, 20_000, dtype=np.uint32)
        | rng.integers(20, 120, 20_000, dtype=np.uint32) << 23
    )
    a = a.view(np.float32)
    b = (2.0**-126 / a.astype(np.float64)).astype(np.float32)
    return a, (bits(b) + rng.integers(-2, 3, 20_000)).astype(np.uint32).view(np.float32)


@dataclass(frozen=True)
class Case:
    """A unit and its oracle.

    Attributes
    ----------
    unit : makes it, with its latency as a keyword where it has one.
    fields : (n, rng) to the fields of the operands: the special values, then n random ones.
    expected : fields' values to the results: float32, or unsigned bits.
    width : bits of the result.
    """

    unit: Callable[..., Any]
    fields: Callable[[int, Any], Fields]
    expected: Callable[..., Array]
    width: int = 32


def wanted(case: Case, fields: Fields) -> Array:
    """Expected bits, uint64 [n]; floats' NaNs as the one NaN of the RTL."""
    value = case.expected(*(values for values, _ in fields))
    if value.dtype == np.float32:
        value = np.where(np.isnan(value), np.uint32(0x7FC00000), value.view(np.uint32))
    return value.astype(np.uint64)


def operands(case: Case, n: int, seed: int = 7) -> tuple[Fields, Array]:
    fields = case.fields(n, np.random.default_rng(seed))
    return fields, pack(*fields)


def _join(first: Array, *more: Array) -> Array:
    return np.concatenate([first, *more])


def _pairs(n: int, rng: Any) -> Fields:
    parts = (special_pairs(), edge_products(rng), pairs(n, rng))
    return [(_join(*(part[k] for part in parts)), 32) for k in (0, 1)]


def _add(n: int, rng: Any) -> Fields:
    a, b = special_pairs()
    c, d = pairs(n, rng)
    subtract = _join(np.zeros(len(a)), np.ones(len(a)), rng.integers(0, 2, n)).astype(np.uint8)
    return [(_join(a, a, c), 32), (_join(b, b, d), 32), (subtract, 1)]


def _integers(n: int, rng: Any) -> Fields:
    ends = [s * (1 << k) + d for k in range(31) for s in (-1, 1) for d in (-2, -1, 0, 1, 2)]
    ends += [2**31 - 1, -(2**31), 2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6]
    random = rng.integers(-(2**31), 2**31, n) >> rng.integers(0, 32, n)
    return [(_join(np.array(ends), random).astype(np.int32), 32)]


def _wide_integers(n: int, rng: Any) -> Fields:
    random = rng.integers(-(2**47), 2**47, n) >> rng.integers(0, 48, n)
    ties = (random >> 24 | 1) << 24  # all that lies below the significand is half a place
    return [(_join(np.array([-(2**47), 2**47 - 1, 0, -1]), random, ties), 48)]


def _levelled(n: int, rng: Any) -> Fields:
    ties = np.arange(-300, 300).astype(np.float32) / np.float32(2)
    around = (bits(ties)[:, None] + np.arange(-2, 3)).astype(np.uint32).reshape(-1)
    x = _join(SPECIAL, ties, around.view(np.float32), (rng.normal(size=n) * 60).astype(np.float32))
    x = x[~np.isnan(x)]
    return [(np.tile(x, 2), 32), (np.repeat(np.array([0, 1], np.uint8), len(x)), 1)]


def _to_int8(x: Array, narrow: Array) -> Array:
    limit = np.where(narrow, np.float32(7), np.float32(127))
    return np.clip(np.rint(x), -limit, limit).astype(np.int8).view(np.uint8)


def _to_half(n: int, rng: Any) -> Fields:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    between = (bits(halves) + np.uint32(0x1000)).view(np.float32)  # ties of normal numbers
    span = rng.integers(95 << 23, 145 << 23, n // 2, dtype=np.uint32)
    span |= rng.integers(0, 2, n // 2, dtype=np.uint32) << 31
    x = _join(SPECIAL, halves, between, span.view(np.float32), normal(n - n // 2, rng))
    return [(x[~np.isnan(x)], 32)]


def _scaled(n: int, rng: Any) -> Fields:
    powers = np.array([-256, -255, -128, -127, -126, -125, -1, 0, 1, 64, 126, 127, 128, 255])
    x = _join(np.repeat(SPECIAL, len(powers)), normal(n, rng))
    power = _join(np.tile(powers, len(SPECIAL)), rng.integers(-256, 256, n))
    # Half of the random results fall near 2^-126, one in four with all fraction bits set.
    pick = rng.integers(0, 4, len(x))
    near = np.where(pick < 2, -(bits(x) >> 23 & 255).astype(np.int64) + rng.integers(-1, 2, len(x)),
                    power)  # fmt: skip
    power[-n:] = near[-n:]
    x[-n:] = np.where(pick == 0, bits(x) | np.uint32(0x7FFFFF), bits(x))[-n:].view(np.float32)
    keep = np.isfinite(x)
    return [(x[keep], 32), (power[keep], 9)]


def _scale(x: Array, power: Array) -> Array:
    factor = np.where(power < -126, 0.0, 2.0 ** power.clip(-126, 127).astype(np.float64))
    scaled = numerics.mul(numerics.flush(x), factor.astype(np.float32))
    beyond = (power > 127) & (numerics.flush(x) != 0)  # 2^power is no float32: in float64
    with np.errstate(over="ignore"):
        exact = (x.astype(np.float64) * 2.0 ** power.clip(0, 255)).astype(np.float32)
    return np.where(beyond, numerics.flush(exact), scaled)


def _any(n: int, rng: Any) -> Fields:
    return [(_join(SPECIAL, normal(n, rng)), 32)]


def _exp(n: int, rng: Any) -> Fields:
    eighths = np.arange(-900, 800).astype(np.float32) / np.float32(8)
    whole = (np.arange(-152, 128) / 1.44269502).astype(np.float32)  # t close to an integer
    around = (bits(whole)[:, None] + np.arange(-3, 4)).astype(np.uint32).reshape(-1)
    spread = rng.uniform(-110, 92, n // 2).astype(np.float32)
    edge = rng.uniform(-88.8, -86.5, n // 8).astype(np.float32)
    x = _join(SPECIAL, eighths, around.view(np.float32), spread, edge, normal(n // 2, rng))
    return [(x[~np.isnan(x)], 32)]


def _order(x: Array) -> Array:
    """An integer that orders as float32 does, -0 below +0, NaNs outside the infinities."""
    size = (bits(x) & np.uint32(0x7FFFFFFF)).astype(np.int64)
    return np.where(np.signbit(x), -size - 1, size)


def _maximum(a: Array, b: Array) -> Array:
    upper = _order(b) > _order(a)
    value = np.where(upper, bits(b), bits(a)).astype(np.uint64)
    number = ~(np.isnan(a) | np.isnan(b))
    plain = np.maximum(a, b)  # numpy's choice between +0 and -0 is left open
    chosen = value.astype(np.uint32).view(np.float32)
    assert np.array_equal(chosen[number], plain[number])
    greater = np.where(number, b > a, upper)
    return value | greater.astype(np.uint64) << np.uint64(32)


def _half(n: int, rng: Any) -> Fields:
    return [(np.arange(1 << 16, dtype=np.uint16).view(np.float16), 16)]


def _widen(x: Array) -> Array:
    """Exact; NaNs keep their payload, which numpy makes quiet."""
    wide = x.view(np.uint16).astype(np.uint64)
    nan = (wide >> 15 & 1) << 31 | np.uint64(255 << 23) | (wide & 0x3FF) << 13
    return np.where(np.isnan(x), nan, bits(x.astype(np.float32)).astype(np.uint64))


def _mul(a: Array, b: Array) -> Array:
    return numerics.mul(numerics.flush(a), numerics.flush(b))


def _wide_to_float(**options: Any) -> Any:
    return floating.IntToFloat(48, exponent=-20, **options)


def _exact_mul(**options: Any) -> Any:
    return floating.FloatMul(subnormal_operands=True, **options)


CASES = {
    "add": Case(floating.FloatAdd, _add, lambda a, b, s: np.where(
        s, numerics.sub(a, b), numerics.add(a, b))),
    "mul": Case(floating.FloatMul, _pairs, _mul),
    "mul_exact": Case(_exact_mul, _pairs, numerics.mul),
    "max": Case(floating.FloatMax, _pairs, _maximum, 33),
    "int_to_float": Case(floating.IntToFloat, _integers, numerics.int_to_float),
    "wide_to_float": Case(_wide_to_float, _wide_integers, lambda x: numerics.int_to_float(x)
                          * np.float32(2.0**-20)),
    "to_int8": Case(floating.FloatToInt8, _levelled, _to_int8, 8),
    "to_half": Case(floating.FloatToHalf, _to_half, lambda x: numerics.to_fp16(x).view(np.uint16),
                    16),
    "from_half": Case(floating.HalfToFloat, _half, _widen),
    "scale": Case(floating.FloatScale, _scaled, _scale),
    "recip": Case(floating.FloatRecip, _any, numerics.recip),
    "rsqrt": Case(floating.FloatRsqrt, _any, numerics.rsqrt),
    "exp": Case(floating.FloatExp, _exp, numerics.exp),
}  # fmt: skip
"""Every unit; the table functions on any bits that a float32 can have (exp: NaN apart)."""


class SideBySide(floating.Datapath):
    """Variants of one unit on the same operands, their results side by side in order."""

    def __init__(self, variants: list[Any]) -> None:
        self.variants = variants
        members = variants[0].signature.members
        width = Shape.cast(members["o"].shape).width
        outputs = data.ArrayLayout(unsigned(width), len(variants))
        super().__init__(members["i"].shape, outputs, max(unit.latency for unit in variants))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for k, unit in enumerate(self.variants):
            m.submodules[f"variant_{k}"] = unit
            late = self.latency - unit.latency
            result = delay(m, self.en, unit.o, late, f"late_{k}")
            m.d.comb += [unit.en.eq(self.en), Value.cast(unit.i).eq(self.i), self.o[k].eq(result)]
        return m
