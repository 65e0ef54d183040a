"""docs/number-formats.md on single numbers: Python floats, each result rounded through `struct`.

Slow and plain on purpose. Tests hold `flightllm.models.integer_ops` against it. A float64 product,
sum or difference of two float32 values, rounded to float32, is correctly rounded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from flightllm.spec import sfu_tables
from flightllm.spec.quant import QuantTensor

Vector = Sequence[float]


def single(value: float) -> float:
    """The nearest float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def half(value: float) -> float:
    """The nearest fp16, saturating."""
    return float(struct.unpack("<e", struct.pack("<e", max(-65504.0, min(65504.0, value))))[0])


def F(value: float) -> float:
    """Round to float32, then flush."""
    value = single(value)
    return math.copysign(0.0, value) if abs(value) < 2.0**-126 else value


def rint(value: float) -> int:
    """Half to even."""
    return round(value)


def clamp(q: int, m: int) -> int:
    """Limit to [-m, m]."""
    return max(-m, min(m, q))


def pairs(v: Vector) -> float:
    """Four levels of adjacent pairs over 16 elements."""
    while len(v) > 1:
        v = [F(a + b) for a, b in zip(v[0::2], v[1::2])]
    return v[0]


def reduce(v: Vector) -> float:
    """REDUCE."""
    accumulators = [0.0] * 16
    for b in range(-(-len(v) // 16)):
        block = list(v[16 * b : 16 * b + 16])
        block += [0.0] * (16 - len(block))
        accumulators[b % 16] = F(accumulators[b % 16] + pairs(block))
    return pairs(accumulators)


def polynomial(row: Vector, d: float) -> float:
    """c0 + d * (c1 + d * c2), each step rounded."""
    c0, c1, c2 = (float(c) for c in row)
    return F(c0 + F(d * F(c1 + F(d * c2))))


def split(x: float) -> tuple[int, float, int]:
    """Exponent, mantissa in [1, 2), top seven fraction bits."""
    mantissa, exponent = math.frexp(x)
    return exponent - 1, mantissa * 2, int((mantissa * 2 - 1) * 128)


def recip(x: float) -> float:
    """1 / x."""
    e, m, i = split(x)
    return F(polynomial(sfu_tables.RECIP[i], m - (1 + (i + 0.5) / 128)) * 2.0**-e)


def rsqrt(x: float) -> float:
    """x ** -0.5."""
    e, m, i = split(x)
    k, p = divmod(e, 2)
    return F(polynomial(sfu_tables.RSQRT[128 * p + i], m - (1 + (i + 0.5) / 128)) * 2.0**-k)


def exp(x: float) -> float:
    """e ** x."""
    t = F(max(-104.0, min(88.0, x)) * single(1.44269502))
    n = math.floor(t)
    f = F(t - n)
    i = min(127, math.floor(128 * f))
    y = polynomial(sfu_tables.EXP[i], F(f - (i + 0.5) / 128))
    return 0.0 if n < -126 else F(y * 2.0**n)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return recip(F(1 + exp(-x)))


def quant(x: Vector, qmax: int) -> tuple[list[int], float]:
    """Levels and max|x|."""
    a = max(abs(v) for v in x)
    inv = F(recip(max(a, 2.0**-64)) * qmax)
    return [clamp(rint(F(v * inv)), qmax) for v in x], a


def norm_quant(x: Vector, gain: Vector, eps: float) -> tuple[list[int], float]:
    """RMSNorm and quantise."""
    total = reduce([F(v * v) for v in x])
    r = rsqrt(F(F(total * single(1 / len(x))) + single(eps)))
    levels, a = quant([F(v * g) for v, g in zip(x, gain)], 127)
    return levels, F(F(a * single(1 / 127)) * r)


def linear_row(x: Sequence[int], s: float, weight: QuantTensor, row: int) -> float:
    """One output of a linear, without addend."""
    acc = 0.0
    for g in range(weight.scales.shape[1]):
        ks = range(g * weight.group, min((g + 1) * weight.group, len(x)))
        isum = sum(int(weight.levels[row, k]) * x[k] for k in ks)
        t = F(single(isum) * float(weight.scales[row, g]))
        if weight.minima is not None:
            asum = sum(x[k] for k in ks if weight.mask is None or weight.mask[row, k])
            t = F(t + F(single(asum) * float(weight.minima[row, g])))
        acc = F(acc + t)
    return F(acc * s)


def softmax_prob(score: Vector, v_scale: Vector, valid: Sequence[bool]) -> tuple[list[int], float]:
    """Probabilities folded with V's scales, and what the sum over V is multiplied with."""
    m = max(v for v, ok in zip(score, valid) if ok)
    e = [exp(F(v - m)) if ok else 0.0 for v, ok in zip(score, valid)]
    vm = max(v for v, ok in zip(v_scale, valid) if ok)
    inv = F(recip(max(vm, 2.0**-64)) * 127)
    prob = [clamp(rint(F(F(a * b) * inv)), 127) for a, b in zip(e, v_scale)]
    return prob, F(F(vm * single(1 / 127)) * recip(reduce(e)))


def rope(x: Vector, cos: Vector, sin: Vector) -> list[float]:
    """One head, adjacent pairs."""
    out = []
    for a, b, c, s in zip(x[0::2], x[1::2], cos, sin):
        out += [F(F(a * c) - F(b * s)), F(F(b * c) + F(a * s))]
    return out


def silu(gate: float, up: float) -> float:
    """SiLU of the gate, times up."""
    return F(F(gate * sigmoid(gate)) * up)


def gelu(x: float) -> float:
    """Tanh form."""
    w = F(x * F(x * x))
    z = F(x + F(w * single(0.044715)))
    return F(x * sigmoid(F(z * single(1.5957692))))
