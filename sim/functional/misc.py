"""MISC, the special function unit: arithmetic is `flightllm.spec.numerics`, see spec/isa.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.core import CoreState
from flightllm.spec import numerics
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import BLOCK

__all__ = [
    "misc_act", "misc_add", "misc_headq", "misc_merge", "misc_quant", "misc_softmax", "misc_stat",
    "misc_topk",
]  # fmt: skip

Flags = frozenset[str]
F32 = NDArray[np.float32]
NOBODY = (np.float32(-np.inf), np.int32(2**31 - 1))
"""What fills a top-k list of fewer than k logits: it sorts behind every real one."""


def misc_add(core: CoreState, flags: Flags, a: int, a1: int, b: int, b1: int, dst: int, dst1: int,
             n: int, n1: int) -> None:  # fmt: skip
    """Add rows."""
    x, y = core.f.view(a, (n1, a1), (n, 1)), core.f.view(b, (n1, b1), (n, 1))
    out = core.f.view(dst, (n1, dst1), (n, 1))
    out[:] = numerics.add(x, y)
    core.note("F", out)


def misc_stat(core: CoreState, flags: Flags, src: int, src1: int, n: int, n1: int, gain: int,
              sums: int, sums1: int, amax: int, amax1: int) -> None:  # fmt: skip
    """Absolute maxima and, for a norm, sums of squares."""
    x = core.f.view(src, (n1, src1), (n, 1))
    largest = core.f.view(amax, (n1, amax1))
    if "norm" not in flags:
        largest[:] = np.abs(x).max(axis=-1, initial=0)
        core.note("F", largest)
        return
    blocks = core.f.view(sums, (n1, sums1), (-(-n // 16), 1))
    scaled = numerics.mul(x, core.f.view(gain, (n, 1)))
    squares = numerics.block_sums(numerics.mul(x, x))
    largest[:] = np.abs(scaled).max(axis=-1, initial=0)
    blocks[:] = squares
    core.note("F", blocks)
    core.note("F", largest)


def misc_quant(core: CoreState, flags: Flags, src: int, src1: int, n: int, n1: int, gain: int,
               sums: int, sums1: int, blocks: int, amax: int, amax1: int, parts: int, dst: int,
               dst1: int, pad: int, scale: int, alpha: np.float32, inv_n: np.float32,
               eps: np.float32) -> None:  # fmt: skip
    """Quantise rows."""
    if pad < n:
        raise VerifyError(f"pad: {pad} is less than n, {n}")
    x = core.f.view(src, (n1, src1), (n, 1))
    a = core.f.view(amax, (n1, amax1), (parts, 1)).max(axis=-1)
    factor = numerics.mul(a, alpha)
    if "norm" in flags:
        x = numerics.mul(x, core.f.view(gain, (n, 1)))
        total = numerics.reduce_blocks(core.f.view(sums, (n1, sums1), (blocks, 1)))
        root = numerics.rsqrt(numerics.add(numerics.mul(total, inv_n), eps))
        factor = numerics.mul(factor, root)
    out, scales = core.a.view(dst, (n1, dst1), (pad, 1)), core.f.view(scale, (n1, 1))
    out[:, :n] = numerics.quant_levels(x, a)
    out[:, n:] = 0
    scales[:] = factor
    core.note("A", out)
    core.note("F", scales)


def misc_headq(core: CoreState, flags: Flags, src: int, src1: int, heads: int, size: int, n1: int,
               dst: int, dst1: int, pad: int, rope: int, rope1: int, scale: int, scale1: int,
               alpha: np.float32) -> None:  # fmt: skip
    """Rotate and quantise heads."""
    if pad < size:
        raise VerifyError(f"pad: {pad} is less than the head size {size}")
    x = core.f.view(src, (n1, src1), (heads, size), (size, 1))
    if "rope" in flags:
        turn = core.f.view(rope, (n1, rope1), (1, 0), (size, 1))
        x = numerics.rope(x, turn[..., : size // 2], turn[..., size // 2 :])
    qmax = 7 if "nibble" in flags else 127
    levels, factor = numerics.head_quant(x, alpha, qmax, "half" in flags)
    out = core.a.view(dst, (n1, dst1), (heads, pad), (pad, 1))
    scales = core.f.view(scale, (n1, scale1), (heads, 1))
    out[..., :size] = levels
    out[..., size:] = 0
    scales[:] = factor
    core.note("A", out)
    core.note("F", scales)


def misc_softmax(core: CoreState, flags: Flags, src: int, src1: int, src2: int, vscale: int,
                 dst: int, dst1: int, dst2: int, scale: int, scale1: int, scale2: int, n1: int,
                 n2: int, length: int, base: int, pos: int, window: int) -> None:  # fmt: skip
    """Scores to INT8 probabilities with V's scales in them."""
    if base < 0 or base % BLOCK:
        raise VerifyError(f"base: {base} is not a multiple of {BLOCK}")
    scores = core.f.view(src, (n1, src1), (n2, src2), (length, 1))
    # A window that reaches to position 0 leaves it to the program which columns there are.
    low, high = pos - window + 1, pos + n1
    if 0 <= low < base or high > base + length or window < 1:
        raise VerifyError(
            f"positions {max(0, low)} to {high - 1} are needed, the scores are of {base} to "
            f"{base + length - 1}"
        )
    lows = np.maximum(0, np.arange(pos - window + 1, pos - window + 1 + n1))[:, None]
    highs = np.arange(pos + 1, pos + 1 + n1)[:, None]
    scales = core.f.view(vscale, (length, 1))
    levels, factor = numerics.softmax_prob(scores, scales, base, lows, highs)
    out = core.a.view(dst, (n1, dst1), (n2, dst2), (-(-length // BLOCK) * BLOCK, 1))
    factors = core.f.view(scale, (n1, scale1), (n2, scale2))
    out[..., :length] = levels
    out[..., length:] = 0
    factors[:] = factor
    core.note("A", out)
    core.note("F", factors)


def misc_act(core: CoreState, flags: Flags, a: int, a1: int, b: int, b1: int, dst: int, dst1: int,
             n: int, n1: int, amax: int, amax1: int) -> None:  # fmt: skip
    """Activation function and the absolute maximum of its result."""
    x = core.f.view(a, (n1, a1), (n, 1))
    if flags == {"silu"}:
        y = numerics.silu_mul(x, core.f.view(b, (n1, b1), (n, 1)))
    elif flags == {"relu"}:
        y = numerics.relu(x)
    elif flags == {"gelu"}:
        y = numerics.gelu(x)
    else:
        raise VerifyError(f"flags: {sorted(flags)} is not one of silu, relu, gelu")
    out, largest = core.f.view(dst, (n1, dst1), (n, 1)), core.f.view(amax, (n1, amax1))
    out[:] = y
    largest[:] = np.abs(y).max(axis=-1, initial=0)
    core.note("F", out)
    core.note("F", largest)


def misc_topk(core: CoreState, flags: Flags, src: int, n: int, k: int, base: int,
              dst: int) -> None:  # fmt: skip
    """The k largest logits and their ids."""
    values = core.f.view(src, (n, 1))
    if k < n:
        threshold = np.partition(values, n - k)[n - k]
        chosen = np.flatnonzero(values >= threshold)
        if len(chosen) < k:  # not-a-numbers among the largest
            chosen = np.arange(n)
    else:
        chosen = np.arange(n)
    _put_pairs(core, dst, k, values[chosen], (base + chosen).astype(np.int32))


def misc_merge(core: CoreState, flags: Flags, src: int, stride: int, parts: int, k: int,
               dst: int) -> None:  # fmt: skip
    """Merge top-k lists."""
    pairs = core.f.view(src, (parts, stride), (2 * k, 1)).reshape(-1, 2).copy()
    _put_pairs(core, dst, k, pairs[:, 0], pairs[:, 1].copy().view(np.int32))


def _put_pairs(core: CoreState, dst: int, k: int, values: F32, ids: NDArray[np.int32]) -> None:
    """The first k of (value, id) in falling order, not-a-number as the least, lower id first."""
    keys = np.where(np.isnan(values), NOBODY[0], values)
    order = np.lexsort((ids, -keys))[:k]
    out = core.f.view(dst, (k, 2), (2, 1))
    codes = core.words.view(dst, (k, 2), (2, 1))
    out[:, 0], codes[:, 1] = NOBODY
    out[: len(order), 0] = values[order]
    codes[: len(order), 1] = ids[order]
    core.note("F", out)
