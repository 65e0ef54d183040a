"""Every operation of docs/number-formats.md in torch, written from that document alone.

Nothing of the arithmetic is shared with `flightllm.spec.numerics` or the simulators (only the
coefficients of the table functions are data of both), so that equality of the two means something.
All functions work on any number of tokens at once and give the same bits whatever the batch:
integer sums are exact in any order, everything else is elementwise, and the two float32 sums (over
weight groups and REDUCE) run in their written order.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flightllm.spec import sfu_tables
from flightllm.spec.quant import QuantTensor

__all__ = [
    "GroupedWeight",
    "accumulate",
    "activation",
    "add",
    "exp",
    "flush",
    "gelu",
    "head_quant",
    "int_linear",
    "linear",
    "mul",
    "norm_quant",
    "quant",
    "quantise",
    "query_quant",
    "recip",
    "reduce",
    "relu",
    "rint",
    "rope",
    "rsqrt",
    "scores",
    "sigmoid",
    "silu",
    "softmax_prob",
    "sub",
    "to_fp16",
]

LARGEST_SUBNORMAL = 2.0**-126 - 2.0**-149
LARGEST_FP16 = 65504.0
FLOOR = 2.0**-64
I127 = float(np.float32(1 / 127))
I7 = float(np.float32(1 / 7))
LOG2_E = float(np.float32(1.44269502))
GELU_CUBIC = float(np.float32(0.044715))
GELU_SCALE = float(np.float32(1.5957692))

HELD_WEIGHTS = 1 << 22  # weights of up to this many entries are kept as float32, others converted
LINEAR_CHUNK = 1 << 20  # group results held at a time by `linear`


def flush(x: Tensor) -> Tensor:
    """Turn every |x| < 2^-126 into a zero of the same sign."""
    return torch.copysign(torch.nn.functional.hardshrink(x, LARGEST_SUBNORMAL), x)


def mul(a: Tensor, b: Tensor | float) -> Tensor:
    """F(a * b); a Python float must be a float32 value."""
    return flush(a * b)


def add(a: Tensor, b: Tensor | float) -> Tensor:
    """F(a + b)."""
    return flush(a + b)


def sub(a: Tensor, b: Tensor | float) -> Tensor:
    """F(a - b)."""
    return flush(a - b)


def rint(x: Tensor) -> Tensor:
    """Nearest integer, halves to even."""
    return torch.round(x)


def to_fp16(x: Tensor) -> Tensor:
    """float32 to fp16, nearest even, saturating at 65504."""
    return x.clamp(-LARGEST_FP16, LARGEST_FP16).to(torch.float16)


# --- sums ---


def _pairs(v: Tensor) -> Tensor:
    """Sum 16 elements of the last axis by four levels of adjacent pairs."""
    for _ in range(4):
        v = add(v[..., 0::2], v[..., 1::2])
    return v[..., 0]


def reduce(v: Tensor) -> Tensor:
    """REDUCE over the last axis: float32 [..., n] to [...]."""
    rounds = max(1, -(-v.shape[-1] // 256))
    v = torch.nn.functional.pad(v, (0, rounds * 256 - v.shape[-1]))
    blocks = _pairs(v.reshape(*v.shape[:-1], rounds, 16, 16))
    total = torch.zeros_like(blocks[..., 0, :])
    for b in range(rounds):
        total = add(total, blocks[..., b, :])
    return _pairs(total)


# --- table functions ---


def _columns(table: NDArray[np.float32]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(table[:, j])) for j in range(3))


_RECIP = _columns(sfu_tables.RECIP)
_RSQRT = _columns(sfu_tables.RSQRT)
_EXP = _columns(sfu_tables.EXP)


def _polynomial(table: tuple[Tensor, ...], entry: Tensor, d: Tensor) -> Tensor:
    """F(c0 + F(d * F(c1 + F(d * c2)))) with the coefficients of the table entry."""
    flat = entry.reshape(-1)
    c0, c1, c2 = (column.index_select(0, flat).view(entry.shape) for column in table)
    return add(c0, mul(d, add(c1, mul(d, c2))))


def _split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponent (int32), top 7 fraction bits (int32) and mantissa (float32, 1 <= m < 2)."""
    bits = x.contiguous().view(torch.int32)
    exponent = ((bits >> 23) & 255) - 127
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(torch.float32)
    return exponent, (bits >> 16) & 127, mantissa


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float32; int32 exponents from -126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)


def _midpoint(entry: Tensor) -> Tensor:
    """The middle of table entry i of 128: (i + 0.5) / 128, exact."""
    return (entry.to(torch.float32) + 0.5) * (1 / 128)


def recip(x: Tensor) -> Tensor:
    """1/x by table; x >= 2^-126, normal, float32."""
    exponent, entry, mantissa = _split(x)
    y = _polynomial(_RECIP, entry, mantissa - (1 + _midpoint(entry)))
    # 2^-127 is no normal number, so the factor of two moves over: y / 2 is exact.
    return mul(y * 0.5, _power_of_two(1 - exponent))


def rsqrt(x: Tensor) -> Tensor:
    """1/sqrt(x) by table; x >= 2^-126, normal, float32."""
    exponent, entry, mantissa = _split(x)
    y = _polynomial(_RSQRT, entry + ((exponent & 1) << 7), mantissa - (1 + _midpoint(entry)))
    return mul(y, _power_of_two(-(exponent >> 1)))


def exp(x: Tensor) -> Tensor:
    """e^x by table, x clamped to [-104, 88]; 0 below 2^-126."""
    t = mul(x.clamp(-104.0, 88.0), LOG2_E)
    n = torch.floor(t)
    f = sub(t, n)
    # A tiny negative t has n = -1 and f rounded to 1: the last entry serves it.
    entry = torch.floor(f * 128).to(torch.int32).clamp(max=127)
    y = _polynomial(_EXP, entry, sub(f, _midpoint(entry)))
    exponent = n.to(torch.int32)
    return torch.where(n < -126, 0.0, mul(y, _power_of_two(exponent.clamp(min=-126))))


def sigmoid(x: Tensor) -> Tensor:
    """recip(F(1 + exp(-x)))."""
    return recip(add(exp(-x), 1.0))


# --- quantising ---


def quant(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Quantise over the last axis.

    Returns
    -------
    levels : int8 like x, in [-qmax, qmax].
    largest : float32 [...], max|x|, from which the caller states the scale.
    """
    largest = x.abs().amax(-1)
    inverse = mul(recip(largest.clamp(min=FLOOR)), float(qmax))
    levels = rint(mul(x, inverse[..., None])).clamp(-qmax, qmax)
    return levels.to(torch.int8), largest


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention output or MLP activation [T, n] to int8 levels and float32 scales [T]."""
    levels, largest = quant(x, 127)
    return levels, mul(largest, I127)


def norm_quant(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm and quantise x [T, n] with gain [n]: int8 levels [T, n], float32 scales [T]."""
    mean = mul(reduce(mul(x, x)), float(np.float32(1 / x.shape[-1])))
    root = rsqrt(add(mean, float(np.float32(eps))))
    levels, largest = quant(mul(x, gain), 127)
    return levels, mul(mul(largest, I127), root)


def query_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Query heads [..., head_dim] after RoPE: int8 levels, float32 scales [...] with 1/sqrt(hd)."""
    levels, largest = quant(x, 127)
    return levels, mul(largest, float(np.float32(1 / (127 * math.sqrt(x.shape[-1])))))


def head_quant(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """K or V heads [..., head_dim] as the cache keeps them: int8 levels, fp16 scales [...]."""
    levels, largest = quant(x, 127 if bits == 8 else 7)
    return levels, to_fp16(mul(largest, I127 if bits == 8 else I7))


# --- linear operations ---


class GroupedWeight:
    """A `QuantTensor` laid out for `linear`: levels by group, scales beside them.

    Members
    -------
    rows, columns, group : of the matrix.
    levels : int8 (float32 where small) [groups, group, rows], the last group padded with zeros.
    scales, minima : float32 [groups, 1, rows]; minima None where the tensor has none.
    mask : like `levels`, 1 where a sparse tensor with minima keeps the weight; else None.
    """

    def __init__(self, weight: QuantTensor) -> None:
        self.rows, self.columns = weight.shape
        self.group = weight.group
        self.levels = self._grouped(weight.levels)
        self.scales = self._per_group(weight.scales)
        self.minima = None if weight.minima is None else self._per_group(weight.minima)
        self.mask: Tensor | None = None
        if weight.minima is not None and weight.mask is not None:
            self.mask = self._grouped(weight.mask.astype(np.int8))

    def _grouped(self, matrix: NDArray[np.int8]) -> Tensor:
        groups = -(-self.columns // self.group)
        wide = np.zeros((self.rows, groups * self.group), np.int8)
        wide[:, : self.columns] = matrix
        blocks = torch.from_numpy(wide).view(self.rows, groups, self.group)
        tensor = blocks.permute(1, 2, 0).contiguous()
        return tensor.to(torch.float32) if tensor.numel() <= HELD_WEIGHTS else tensor

    @staticmethod
    def _per_group(values: NDArray[np.float16]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32).T[:, None, :].copy())


def accumulate(terms: Tensor) -> Tensor:
    """Sum group results [groups, ...] in group order, starting at +0."""
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = add(total, term)
    return total


def _group_sums(x: Tensor, weight: GroupedWeight, levels: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled group results [groups, T, rows] of activations [groups, T, group]."""
    terms = mul(torch.bmm(x, levels), weight.scales)
    if weight.minima is not None:
        sums = x.sum(-1, keepdim=True) if mask is None else torch.bmm(x, mask)
        terms = add(terms, mul(sums, weight.minima))
    return terms


def linear(x: Tensor, scale: Tensor, weight: GroupedWeight, addend: Tensor | None = None) -> Tensor:
    """y = W x by groups.

    Parameters
    ----------
    x : int8 [T, columns]. scale : float32 [T].
    addend : float32 [T, rows] or [rows], added last (a bias or the residual), or None.

    Returns
    -------
    float32 [T, rows].
    """
    groups = weight.levels.shape[0]
    padded = torch.nn.functional.pad(
        x.to(torch.float32), (0, groups * weight.group - weight.columns)
    )
    # A group's sum stays below 2^24, so float32 matrix products are exact in any order.
    by_group = padded.view(x.shape[0], groups, weight.group).transpose(0, 1)
    levels = weight.levels.to(torch.float32)
    mask = None if weight.mask is None else weight.mask.to(torch.float32)
    step = max(1, LINEAR_CHUNK // (groups * weight.rows))
    parts = [
        accumulate(_group_sums(by_group[:, first : first + step], weight, levels, mask))
        for first in range(0, x.shape[0], step)
    ]
    y = mul(torch.cat(parts), scale[:, None])
    return y if addend is None else add(y, addend)


def _exact_product(a: Tensor, b: Tensor) -> Tensor:
    """The integer matrix product of two int8 tensors, rounded once to float32."""
    # |sum| <= 1024 * 2^14 is exact in float32; float64 serves every longer sum.
    dtype = torch.float32 if a.shape[-1] <= 1024 else torch.float64
    return torch.matmul(a.to(dtype), b.to(dtype)).to(torch.float32)


def int_linear(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """F(float(isum) * s): int8 x [..., T, K], levels [..., K, N], float32 scale [..., T]."""
    return mul(_exact_product(x, levels), scale[..., None])


# --- attention ---


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of x [T, heads, head_dim] by cos, sin [T, head_dim // 2]."""
    even, odd, c, s = x[..., 0::2], x[..., 1::2], cos[:, None, :], sin[:, None, :]
    turned = (sub(mul(even, c), mul(odd, s)), add(mul(odd, c), mul(even, s)))
    return torch.stack(turned, -1).flatten(-2)


def scores(q: Tensor, q_scale: Tensor, k: Tensor, k_scale: Tensor) -> Tensor:
    """Attention scores.

    Parameters
    ----------
    q : int8 [..., T, head_dim] with float32 scales q_scale [..., T].
    k : int8 [..., L, head_dim] with fp16 scales k_scale [..., L].

    Returns
    -------
    float32 [..., T, L].
    """
    by_key = mul(_exact_product(q, k.transpose(-1, -2)), k_scale.to(torch.float32)[..., None, :])
    # One group: it, too, is added to an accumulator at +0 (a scale of 0 may give -0).
    return mul(add(by_key, 0.0), q_scale[..., None])


def softmax_prob(score: Tensor, v_scale: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of scores [..., L], folded with V's scales and quantised.

    Parameters
    ----------
    v_scale : fp16, broadcastable to the scores. valid : bool, likewise; one True a row at least.
        Index t of the last axis is the token's position from 0.

    Returns
    -------
    prob : int8 [..., L]. scale : float32 [...], c of the document: what the sum over V is
    multiplied with.
    """
    v = v_scale.to(torch.float32)
    largest = torch.where(valid, score, -math.inf).amax(-1, keepdim=True)
    # Scores of tokens that are not valid may lie above the maximum; what exp makes of them is cut.
    e = torch.where(valid, exp(sub(score, largest)), 0.0)
    v_largest = torch.where(valid, v, 0.0).amax(-1, keepdim=True)
    inverse = mul(recip(v_largest.clamp(min=FLOOR)), 127.0)
    prob = rint(mul(mul(e, v), inverse)).clamp(-127, 127).to(torch.int8)
    scale = mul(mul(v_largest[..., 0], I127), recip(reduce(e)))
    return prob, scale.expand(prob.shape[:-1])


# --- activations ---


def silu(gate: Tensor, up: Tensor) -> Tensor:
    """F(F(gate * sigmoid(gate)) * up)."""
    return mul(mul(gate, sigmoid(gate)), up)


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.where(x > 0, x, 0.0)


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh form, as x * sigmoid(1.5957692 (x + 0.044715 x^3))."""
    w = mul(x, mul(x, x))
    z = add(x, mul(w, GELU_CUBIC))
    return mul(x, sigmoid(mul(z, GELU_SCALE)))


def activation(kind: str, up: Tensor, gate: Tensor | None = None) -> Tensor:
    """The MLP's activation by its name in `QuantModel.activation`.

    Raises
    ------
    ValueError
        For an unknown kind, or a gate that is missing or too many.
    """
    if kind == "silu" and gate is not None:
        return silu(gate, up)
    if kind == "relu" and gate is None:
        return relu(up)
    if kind == "gelu" and gate is None:
        return gelu(up)
    raise ValueError(f"activation: {kind!r} {'with' if gate is not None else 'without'} a gate")
