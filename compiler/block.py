"""One folded decoder layer in float32 torch, with or without the device's INT8 vectors.

Calibration runs two streams through it: the model as it is, and the model as the device will
compute it. The second states the quantised vectors of docs/number-formats.md to float32 accuracy
(rounding points are all there, table functions are exact); `flightllm.models.integer` has the bits.
Gradients pass every rounding as if it were not there (straight-through), so that the second can be
trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flightllm.compiler.fold import FoldedEnds, FoldedLayer
from flightllm.models.config import ModelConfig
from flightllm.models.patterns import Pattern, any_sparse
from flightllm.models.rope import rope_tables

__all__ = ["Block", "fake_quant", "linear", "straight"]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient that `exact` has."""
    if not exact.requires_grad:
        return rounded
    made: Tensor = _Straight.apply(exact, rounded.detach())  # type: ignore[no-untyped-call]
    return made


def fake_quant(x: Tensor, largest_level: int = 127, fp16_scale: bool = False) -> Tensor:
    """Round the last axis to INT8 levels of its largest magnitude, and back to float32.

    With `fp16_scale` the levels are scaled back by an fp16 value, as the KV cache does.
    """
    with torch.no_grad():
        scale = x.abs().amax(-1, keepdim=True).clamp(min=2.0**-64) / largest_level
        levels = (x / scale).round_()
        made = levels * (scale.clamp(max=65504.0).half().float() if fp16_scale else scale)
    return straight(x, made)


def repeated(x: Tensor, times: int) -> Tensor:
    """x [B, heads, ...] with each head `times` over: `repeat_interleave`, which copies slowly."""
    return x if times == 1 else x[:, :, None].expand(-1, -1, times, *x.shape[2:]).flatten(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias; the bias may be any tensor that broadcasts."""
    product = functional.linear(x, weight)
    return product if bias is None else product + bias


@dataclass(frozen=True)
class Block:
    """What every layer of a model does.

    Members
    -------
    quantised : whether vectors are quantised where the device does it.
    key_bits, value_bits : of the KV cache, 8 or 4 each.
    cos, sin : float32 [length, head_dim // 2], or None without RoPE.
    kept : bool [heads, length, length], which keys block-sparse attention keeps for each query, or
        None: all.
    """

    config: ModelConfig
    quantised: bool
    key_bits: int
    value_bits: int
    cos: Tensor | None
    sin: Tensor | None
    kept: Tensor | None = None

    @classmethod
    def of(
        cls, config: ModelConfig, length: int, kv_bits: int | tuple[int, int], quantised: bool
    ) -> Block:
        """A block for sequences of up to `length` tokens; `kv_bits` of both or of K and V."""
        bits = (kv_bits, kv_bits) if isinstance(kv_bits, int) else kv_bits
        if config.rope is None:
            return cls(config, quantised, *bits, None, None)
        cos, sin = (torch.from_numpy(table) for table in rope_tables(config, length))
        return cls(config, quantised, *bits, cos, sin)

    def keeping(self, patterns: Sequence[Pattern] | None, tokens: int) -> Block:
        """This block with one layer's block-sparse attention, for texts of up to `tokens`."""
        if not any_sparse(patterns):
            return replace(self, kept=None)
        assert patterns is not None
        kept = torch.stack([torch.from_numpy(pattern.keeps(tokens)) for pattern in patterns])
        shared = self.config.heads // self.config.kv_heads
        return replace(self, kept=kept.repeat_interleave(shared, dim=0))

    def vector(self, x: Tensor) -> Tensor:
        """A linear's input as it is, or quantised per token."""
        return fake_quant(x) if self.quantised else x

    def norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm of x [B, T, dim], as a linear's input."""
        root = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return self.vector(x * gain) * root if self.quantised else x * root * gain

    def heads(self, x: Tensor, rotate: bool) -> Tensor:
        """[B, T, heads * head_dim] as [B, heads, T, head_dim], turned by RoPE if `rotate`."""
        x = x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        if not rotate or self.cos is None or self.sin is None:
            return x
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)

    def seen(self, tokens: int) -> Tensor:
        """Which tokens each attends to, bool [T, T]; [heads, T, T] with `kept`."""
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
        mask = distance >= 0
        if self.config.window is not None:
            mask = mask & (distance < self.config.window)
        return mask if self.kept is None else mask & self.kept[:, :tokens, :tokens]

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention as the o projection's input [B, T, heads * head_dim].

        Parameters
        ----------
        q : [B, heads, T, head_dim]; k, v : [B, kv_heads, T, head_dim]; q and k after RoPE.
        """
        repeat = q.shape[1] // k.shape[1]
        mask = self.seen(q.shape[2])
        if not self.quantised:
            k, v = (repeated(part, repeat) for part in (k, v))
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return out.transpose(1, 2).flatten(2)
        key_top, value_top = (127 if bits == 8 else 7 for bits in (self.key_bits, self.value_bits))
        k, v_back = fake_quant(k, key_top, True), fake_quant(v, value_top, True)
        v_scale = (v.detach().abs().amax(-1) / value_top).half().float()
        v_scale = repeated(v_scale, repeat)
        k, v_back = (repeated(part, repeat) for part in (k, v_back))
        score = fake_quant(q) @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        score = score.masked_fill(~mask, -torch.inf)
        weight = torch.exp(score - score.amax(-1, keepdim=True))
        total = weight.sum(-1, keepdim=True)
        # V's scale of a token stands inside its probability when that is quantised.
        row = v_scale[:, :, None, :]
        largest = torch.where(mask, row, 0.0).amax(-1, keepdim=True).clamp(min=2.0**-64)
        level = (weight.detach() * row / largest * 127).round_()
        made = level * (largest / 127) / row.clamp(min=2.0**-24) / total.detach()
        share = straight(weight / total, made)
        return self.vector((share @ v_back).transpose(1, 2).flatten(2))

    def activate(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """The MLP's inner vector, as the down projection's input."""
        match self.config.activation:
            case "silu":
                assert gate is not None
                inner = functional.silu(gate) * up
            case "relu":
                inner = functional.relu(up)
            case "gelu_erf" if not self.quantised:
                inner = functional.gelu(up)
            case _:
                inner = functional.gelu(up, approximate="tanh")
        return self.vector(inner)

    # ------------------------------------------------------------------ a whole layer

    def projected(self, layer: FoldedLayer, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (after RoPE) and v of a layer, [B, heads, T, head_dim], from its normed input."""
        q, k, v = (
            self.heads(linear(h, layer.weights[name], layer.biases.get(name)), name != "v")
            for name in ("q", "k", "v")
        )
        return q, k, v

    def inner(self, layer: FoldedLayer, h: Tensor) -> Tensor:
        """The down projection's input, from the MLP's normed input."""
        up = linear(h, layer.weights["up"], layer.biases.get("up"))
        gate = None
        if "gate" in layer.weights:
            gate = linear(h, layer.weights["gate"], layer.biases.get("gate"))
        return self.activate(up, gate)

    def run(self, layer: FoldedLayer, x: Tensor) -> Tensor:
        """The residual stream [B, T, dim] after a layer."""
        attended = self.attention(*self.projected(layer, self.norm(x, layer.attn_norm)))
        x = x + linear(attended, layer.weights["o"], layer.biases.get("o"))
        inner = self.inner(layer, self.norm(x, layer.mlp_norm))
        return x + linear(inner, layer.weights["down"], layer.biases.get("down"))

    def logits(self, x: Tensor, ends: FoldedEnds) -> Tensor:
        """Logits [..., vocab] of the residual stream [..., dim] after the last layer."""
        return linear(self.norm(x, ends.final_norm), ends.head, ends.head_bias)
