"""Every operation of docs/number-formats.md in numpy float32: what all executors compute.

All functions are vectorised over leading axes, take and return float32 unless they say otherwise,
and never warn: an overflow gives the infinity or NaN that IEEE 754 gives. Inputs may hold any bits.
A flush is left out where no result can lie below 2^-126, or where nobody could see the difference;
a comment says so, and tests hold these functions against the document's own formulas.

Greatest errors measured (tests/spec/test_numerics.py), in units of the last place of the result:
recip 1.13, rsqrt 1.04, the power of two inside exp 1.01. Rounding x * log2(e) makes the relative
error of exp itself grow with |x|: 1.6e-7 up to 1, 5.7e-7 up to 10, 3.9e-6 up to 88.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flightllm.spec import sfu_tables

__all__ = [
    "I127", "I7", "accumulate", "activation", "add", "block_sums", "exp", "flush", "gelu",
    "head_quant", "int_linear", "int_to_float", "linear", "mul", "norm_quant", "norm_scale",
    "quant", "quant_levels", "quantise", "query_alpha", "recip", "reduce_blocks", "reduce_sum",
    "relu", "rope", "rsqrt", "sigmoid", "silu_mul", "softmax_prob", "sub", "to_fp16",
]  # fmt: skip

Floats = NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])

SMALLEST = np.float32(2.0**-126)  # the smallest normal number
LARGEST_FP16 = np.float32(65504.0)
FLOOR = np.float32(2.0**-64)  # absolute maxima count as at least this
I127 = np.float32(1 / 127)
I7 = np.float32(1 / 7)
_Q127 = np.float32(127.0)
_LOG2_E = np.float32(1.44269502)
_EXP_LOWEST = np.float32(-104.0)
_EXP_HIGHEST = np.float32(88.0)
_GELU_CUBIC = np.float32(0.044715)
_GELU_SCALE = np.float32(1.5957692)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_ENTRIES = np.float32(128.0)
_MINUS_INFINITY = np.float32(-np.inf)
_FRACTION = np.int32(0x7FFFFF)
_BITS_OF_ONE = np.int32(0x3F800000)
# int32 constants: numpy < 2 makes int64 of an int32 scalar and a Python integer.
_0, _1, _7, _16, _23, _127, _254, _255 = map(np.int32, (0, 1, 7, 16, 23, 127, 254, 255))
# Middle of table segment i of 128, of [0, 1) and of [1, 2); exact.
_MIDDLE = ((np.arange(128) + 0.5) / 128).astype(np.float32)
_MIDDLE_FROM_ONE = _MIDDLE + _ONE


def _silent(function: Function) -> Function:
    """Let a public function meet overflow and NaN without a warning; once, as it costs 2 us."""
    return np.errstate(all="ignore")(function)


# --- single operations ---


def _flush(x: Floats) -> Floats:
    return x * (np.abs(x) >= SMALLEST)  # times 0 or 1 keeps the sign of a zero


def _mul(a: Floats, b: Floats | np.float32) -> Floats:
    return _flush(a * b)


def _add(a: Floats, b: Floats | np.float32) -> Floats:
    return _flush(a + b)


def _sub(a: Floats, b: Floats | np.float32) -> Floats:
    return _flush(a - b)


@_silent
def flush(x: Floats) -> Floats:
    """F(x): every |x| < 2^-126 becomes a zero of the same sign."""
    return _flush(x)


@_silent
def mul(a: Floats, b: Floats | np.float32) -> Floats:
    """F(a * b)."""
    return _mul(a, b)


@_silent
def add(a: Floats, b: Floats | np.float32) -> Floats:
    """F(a + b)."""
    return _add(a, b)


@_silent
def sub(a: Floats, b: Floats | np.float32) -> Floats:
    """F(a - b)."""
    return _sub(a, b)


def int_to_float(x: NDArray[np.integer[Any]]) -> Floats:
    """An exact integer (of at most 32 bits) to float32, nearest even."""
    return x.astype(np.float32)


@_silent
def to_fp16(x: Floats) -> NDArray[np.float16]:
    """float32 to float16, nearest even, saturating at 65504."""
    return np.clip(x, -LARGEST_FP16, LARGEST_FP16).astype(np.float16)


# --- sums ---


def _pairs(v: Floats, flushed: bool) -> Floats:
    """Sum 16 elements of the last axis by four levels of adjacent pairs: [..., 16] to [...]."""
    for _ in range(4):
        v = v[..., 0::2] + v[..., 1::2]
        if flushed:
            v = _flush(v)
    return v[..., 0]


def _aligned(v: Floats, start: int, unit: int) -> Floats:
    """[..., n] with index `start` first to [..., whole units, unit], missing elements +0."""
    ahead = start % unit
    behind = -(ahead + v.shape[-1]) % unit
    if ahead or behind:
        wide = np.zeros((*v.shape[:-1], ahead + v.shape[-1] + behind), np.float32)
        wide[..., ahead : ahead + v.shape[-1]] = v
        v = wide
    return v.reshape(*v.shape[:-1], -1, unit)


def _reduce_blocks(blocks: Floats, first: int, flushed: bool) -> Floats:
    rounds = _aligned(blocks, first, 16)
    total = np.zeros((*blocks.shape[:-1], 16), np.float32)
    for r in range(rounds.shape[-2]):
        total = total + rounds[..., r, :]
        if flushed:
            total = _flush(total)
    return _pairs(total, flushed)


def _cancels(v: Floats) -> bool:
    """Whether sums need flushing: of values >= 0 none is below the largest of them."""
    return not (v.size == 0 or v.min() >= 0)


@_silent
def block_sums(v: Floats, start: int = 0) -> Floats:
    """Step 1 of REDUCE: sums of 16 elements by adjacent pairs.

    Parameters
    ----------
    v : [..., n]. start : absolute index of the first element.

    Returns
    -------
    [..., blocks], the first one block ``start // 16``.
    """
    return _pairs(_aligned(v, start, 16), _cancels(v))


@_silent
def reduce_blocks(blocks: Floats, first: int = 0) -> Floats:
    """Steps 2 and 3 of REDUCE: [..., blocks], the first one block `first`, to [...]."""
    return _reduce_blocks(blocks, first, _cancels(blocks))


@_silent
def reduce_sum(v: Floats, axis: int = -1, start: int = 0) -> Floats:
    """REDUCE over an axis whose first element has absolute index `start`."""
    flushed = _cancels(v)
    if axis not in (-1, v.ndim - 1):
        v = np.moveaxis(v, axis, -1)
    return _reduce_blocks(_pairs(_aligned(v, start, 16), flushed), start // 16, flushed)


# --- table functions ---


def _polynomial(table: Floats, entry: NDArray[np.int32], d: Floats) -> Floats:
    """c0 + d * (c1 + d * c2); |d| is 0 or at least 2^-32 here, so that nothing flushes."""
    rows = table.take(entry, axis=0)
    return rows[..., 0] + d * (rows[..., 1] + d * rows[..., 2])


def _split(x: Floats) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
    """Biased exponent, top 7 fraction bits and distance from the middle of the table's segment."""
    bits = x.view(np.int32)
    entry = (bits >> _16) & _127
    mantissa = ((bits & _FRACTION) | _BITS_OF_ONE).view(np.float32)
    return (bits >> _23) & _255, entry, mantissa - _MIDDLE_FROM_ONE.take(entry)


def _power(biased: NDArray[np.int32]) -> Floats:
    """2^(biased - 127), or 0 for biased <= 0: what it scales would flush."""
    return (np.maximum(biased, _0) << _23).view(np.float32)


def _recip(x: Floats) -> Floats:
    exponent, entry, d = _split(x)
    return _mul(_polynomial(sfu_tables.RECIP, entry, d), _power(_254 - exponent))


def _rsqrt(x: Floats) -> Floats:
    exponent, entry, d = _split(x)
    exponent = exponent - _127
    y = _polynomial(sfu_tables.RSQRT, entry | ((exponent & _1) << _7), d)
    return y * _power(_127 - (exponent >> _1))  # 2^-64 to 2^63: no flush


def _exp(x: Floats) -> Floats:
    t = _mul(np.minimum(np.maximum(x, _EXP_LOWEST), _EXP_HIGHEST), _LOG2_E)
    n = np.floor(t)
    f = t - n  # t itself, or at least 2^-24: no flush
    # f is 1 for a tiny negative t: entry 127 serves it. NaN is looked up anywhere and stays NaN.
    entry = np.minimum(np.maximum((f * _ENTRIES).astype(np.int32), _0), _127)
    y = _polynomial(sfu_tables.EXP, entry, f - _MIDDLE.take(entry))
    return _mul(y, _power(n.astype(np.int32) + _127))


def _sigmoid(x: Floats) -> Floats:
    return _recip(_exp(-x) + _ONE)


@_silent
def recip(x: Floats) -> Floats:
    """1/x by table, for normal x >= 2^-126; error at most 1.13 ulp, 0 where 1/x < 2^-126."""
    return _recip(np.asarray(x, np.float32))


@_silent
def rsqrt(x: Floats) -> Floats:
    """1/sqrt(x) by table, for normal x >= 2^-126; error at most 1.04 ulp."""
    return _rsqrt(np.asarray(x, np.float32))


@_silent
def exp(x: Floats) -> Floats:
    """e^x by table, x clamped to [-104, 88]; 0 below 2^-126."""
    return _exp(np.asarray(x, np.float32))


@_silent
def sigmoid(x: Floats) -> Floats:
    """recip(F(1 + exp(-x)))."""
    return _sigmoid(np.asarray(x, np.float32))


# --- quantising ---


def _levels(x: Floats, a: Floats, qmax: np.float32) -> NDArray[np.int8]:
    # The products flush to 0 or round to 0: no flush needed.
    inverse = _recip(np.maximum(a, FLOOR)) * qmax
    q = np.rint(x * inverse[..., None])
    return np.minimum(np.maximum(q, -qmax), qmax).astype(np.int8)


def _quant(x: Floats, qmax: np.float32) -> tuple[NDArray[np.int8], Floats]:
    a = np.abs(x).max(axis=-1)
    return _levels(x, a, qmax), a


@_silent
def quant_levels(x: Floats, a: Floats, qmax: int = 127) -> NDArray[np.int8]:
    """Levels of x [..., n] for the absolute maxima a [...]: int8 [..., n] in [-qmax, qmax]."""
    return _levels(x, np.asarray(a, np.float32), np.float32(qmax))


@_silent
def quant(x: Floats, qmax: int = 127) -> tuple[NDArray[np.int8], Floats]:
    """Quantise over the last axis.

    Returns
    -------
    levels : int8 [..., n] in [-qmax, qmax].
    a : [...], max|x|, from which the caller states the scale.
    """
    return _quant(x, np.float32(qmax))


@_silent
def quantise(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Attention output or MLP activation [..., n] to int8 levels and scales [...], F(a / 127)."""
    levels, a = _quant(x, _Q127)
    return levels, _mul(a, I127)


def _norm_scale(a: Floats, sum_squares: Floats, inv_n: np.float32, eps: np.float32) -> Floats:
    root = _rsqrt(_add(_mul(sum_squares, inv_n), eps))
    return _mul(_mul(a, I127), root)


@_silent
def norm_scale(a: Floats, sum_squares: Floats, inv_n: np.float32, eps: np.float32) -> Floats:
    """F(F(a * i127) * rsqrt(F(F(ss * inv_n) + eps))), all arguments float32, a and ss [...]."""
    return _norm_scale(a, sum_squares, inv_n, eps)


@_silent
def norm_quant(x: Floats, gain: Floats, eps: float) -> tuple[NDArray[np.int8], Floats]:
    """RMSNorm and quantise.

    Parameters
    ----------
    x : [..., n]. gain : [n]. eps : used as the float32 nearest to it.

    Returns
    -------
    levels : int8 [..., n] in [-127, 127]. scale : [...].
    """
    levels, a = _quant(_mul(x, gain), _Q127)
    squares = _mul(x, x)
    total = _reduce_blocks(_pairs(_aligned(squares, 0, 16), False), 0, False)
    return levels, _norm_scale(a, total, np.float32(1 / x.shape[-1]), np.float32(eps))


def query_alpha(head_dim: int) -> np.float32:
    """cq of the document: from a query head's absolute maximum to its scale with 1/sqrt(hd)."""
    return np.float32(1 / (127 * math.sqrt(head_dim)))


@_silent
def head_quant(
    x: Floats, alpha: np.float32, qmax: int = 127, half: bool = False
) -> tuple[NDArray[np.int8], Floats]:
    """Quantise heads of q, k or v, after RoPE.

    Parameters
    ----------
    x : [..., head_dim]. alpha : from absolute maximum to scale. qmax : 127, or 7 for KV 4.
    half : round the scale to fp16 (k and v).

    Returns
    -------
    levels : int8 [..., head_dim] in [-qmax, qmax].
    scale : float32 [...], an fp16 value with `half`.
    """
    levels, a = _quant(x, np.float32(qmax))
    scale = _mul(a, alpha)
    return levels, to_fp16(scale).astype(np.float32) if half else scale


@_silent
def rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotate adjacent pairs of x [..., head_dim]; cos and sin broadcast to [..., head_dim / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty(x.shape, np.float32)
    out[..., 0::2] = _sub(_mul(even, cos), _mul(odd, sin))
    out[..., 1::2] = _add(_mul(odd, cos), _mul(even, sin))
    return out


# --- softmax ---


@_silent
def softmax_prob(
    scores: Floats,
    vscale: Floats,
    first: int,
    lo: NDArray[np.integer[Any]] | int,
    hi: NDArray[np.integer[Any]] | int,
) -> tuple[NDArray[np.int8], Floats]:
    """Softmax of scores, folded with V's scales and quantised.

    Parameters
    ----------
    scores : [..., n]; column i is the token at position first + i.
    vscale : V's scales, fp16 values as float32, broadcastable to the scores.
    first : position of column 0, absolute: it decides the order of the sum.
    lo, hi : a row's valid positions are lo .. hi - 1, one at least; integers or [...]. Other
        columns may hold anything, in `vscale` too.

    Returns
    -------
    prob : int8 [..., n], 0 where not valid.
    factor : [...], c of the document: the scale of the sum over V.
    """
    n = scores.shape[-1]
    low, high = np.asarray(lo), np.asarray(hi)
    if low.max() > first or high.min() < first + n:
        position = np.arange(first, first + n)
        valid = (position >= low[..., None]) & (position < high[..., None])
        scores = np.where(valid, scores, _MINUS_INFINITY)
        vscale = np.where(valid, vscale, _ZERO)
    else:
        valid = None
    e = _exp(_sub(scores, scores.max(axis=-1, keepdims=True)))
    if valid is not None:
        e *= valid
    total = _reduce_blocks(_pairs(_aligned(e, first, 16), False), first // 16, False)
    largest = vscale.max(axis=-1)
    # The inverse is below 2^72: as in _levels, what would flush rounds to 0.
    inverse = _recip(np.maximum(largest, FLOOR)) * _Q127
    q = np.rint(e * vscale * inverse[..., None])
    prob = np.minimum(np.maximum(q, -_Q127), _Q127).astype(np.int8)
    return prob, _mul(_mul(largest, I127), _recip(total))


# --- activations ---


@_silent
def silu_mul(gate: Floats, up: Floats) -> Floats:
    """F(F(gate * sigmoid(gate)) * up)."""
    return _mul(_mul(gate, _sigmoid(gate)), up)


@_silent
def relu(x: Floats) -> Floats:
    """max(x, +0)."""
    return np.where(x > 0, x, _ZERO)


@_silent
def gelu(x: Floats) -> Floats:
    """GELU, tanh form, as x * sigmoid(1.5957692 (x + 0.044715 x^3))."""
    w = _mul(x, _mul(x, x))
    z = _add(x, _mul(w, _GELU_CUBIC))
    return _mul(x, _sigmoid(_mul(z, _GELU_SCALE)))


def activation(kind: str, x: Floats, up: Floats | None = None) -> Floats:
    """An MLP's activation by name: "silu" (x is the gate, `up` the factor), "relu" or "gelu".

    Raises
    ------
    ValueError
        For an unknown kind, or a factor that is missing or too many.
    """
    if kind == "silu" and up is not None:
        return silu_mul(x, up)
    if kind == "relu" and up is None:
        return relu(x)
    if kind == "gelu" and up is None:
        return gelu(x)
    raise ValueError(f"activation: {kind!r} {'with' if up is not None else 'without'} a factor")


# --- linear operations ---


@_silent
def accumulate(
    x: NDArray[np.int8],
    levels: NDArray[np.int8],
    scales: Floats,
    group: int,
    minima: Floats | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> Floats:
    """acc of the linear operation, clear rather than fast (sim.functional.kernels is fast).

    Parameters
    ----------
    x : int8 [vectors, K]. levels : int8 [rows, K], 0 where not kept.
    scales, minima : [rows, ceil(K / group)], fp16 values as float32.
    mask : bool [rows, K], the kept positions of a sparse matrix, or None; matters for `minima`.

    Returns
    -------
    float32 [vectors, rows].
    """
    acc = np.zeros((x.shape[0], levels.shape[0]), np.float32)
    wide, weights = x.astype(np.int32), levels.astype(np.int32)
    kept = np.ones_like(weights) if mask is None else mask.astype(np.int32)
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        term = _mul(int_to_float(wide[:, part] @ weights[:, part].T), scales[:, g])
        if minima is not None:
            sums = int_to_float(wide[:, part] @ kept[:, part].T)
            term = _add(term, _mul(sums, minima[:, g]))
        acc = _add(acc, term)
    return acc


@_silent
def linear(acc: Floats, scale: Floats, addend: Floats | None = None) -> Floats:
    """F(acc * s), then F(y + addend): acc [vectors, rows], scale [vectors], addend broadcast."""
    y = _mul(acc, scale[..., None])
    return y if addend is None else _add(y, addend)


@_silent
def int_linear(isum: NDArray[np.int32], scale: Floats) -> Floats:
    """F(float(isum) * s): exact sums [vectors, rows], scale [vectors]."""
    return _mul(int_to_float(isum), scale[..., None])
