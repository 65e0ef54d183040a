"""The quantised model: what the front end makes, the back end and the references read.

Everything that can be folded is folded: every norm is an RMSNorm (LayerNorm's mean is folded into
the matrices that write the residual, its bias into the biases of those that read it), RoPE rotates
adjacent pairs (2i, 2i+1) of a head, K smoothing stands inside Wq and Wk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flightllm.models.patterns import Pattern
from flightllm.spec.quant import QuantTensor

__all__ = ["QuantLayer", "QuantLinear", "QuantModel"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class QuantLinear:
    """y = W x + bias, W [rows, columns] quantised, bias float32 [rows] or None."""

    weight: QuantTensor
    bias: F32 | None = None


@dataclass(frozen=True)
class QuantLayer:
    """One decoder layer. `gate` is None for ungated MLPs (OPT, GPT-2).

    Members
    -------
    attn_norm, mlp_norm : float32 [dim], RMSNorm gains.
    q : rows heads * head_dim; k, v : rows kv_heads * head_dim; o : rows dim.
    gate, up : rows ffn_dim; down : rows dim.
    patterns : of each KV head's attention in prefill, or None: dense. Not with a sliding window.
    """

    attn_norm: F32
    q: QuantLinear
    k: QuantLinear
    v: QuantLinear
    o: QuantLinear
    mlp_norm: F32
    gate: QuantLinear | None
    up: QuantLinear
    down: QuantLinear
    patterns: tuple[Pattern, ...] | None = None


@dataclass(frozen=True)
class QuantModel:
    """A decoder-only model, folded and quantised, ready to lower.

    Members
    -------
    embed : float16 [vocab, dim]; positions : float16 [max_length, dim] or None (learned positions,
        row p is added for position p; any offset of the checkpoint is already removed).
    cos, sin : float32 [max_length, head_dim // 2] or None (no RoPE). Attention factor included.
    activation : "silu" (gated: silu(gate) * up), "relu" or "gelu" (tanh form).
    key_bits, value_bits : of the KV cache, 8 or 4 each. window : sliding window in tokens, or None.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab: int
    max_length: int
    norm_eps: float
    activation: str
    key_bits: int
    value_bits: int
    window: int | None
    embed: NDArray[np.float16]
    positions: NDArray[np.float16] | None
    cos: F32 | None
    sin: F32 | None
    layers: Sequence[QuantLayer]
    final_norm: F32
    head: QuantLinear
