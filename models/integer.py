"""The quantised model in torch: the independent integer/float32 reference of every executor.

`IntegerModel` states docs/number-formats.md for a whole model, to the bit, with the operations of
`flightllm.models.integer_ops`. n tokens at once and n times one token give the same bits and leave
the same cache; where attention is block-sparse that holds for prefill, and decoding differs, for it
sees everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flightllm.models import integer_ops as ops
from flightllm.models.patterns import Pattern, any_sparse
from flightllm.models.quantized import QuantLayer, QuantLinear, QuantModel
from flightllm.spec.errors import InputError
from flightllm.spec.formats import BLOCK

__all__ = ["IntegerCache", "IntegerModel"]

Observer = Callable[[str, Tensor], None]

SCORES_AT_A_TIME = 1 << 15  # attention works on so many scores at once: they stay in cache memory


class IntegerCache:
    """K and V of the tokens seen so far, as a device keeps them.

    Members
    -------
    length : tokens held.
    """

    def __init__(self, model: QuantModel) -> None:
        shape = (2, len(model.layers), model.max_length, model.kv_heads, model.head_dim)
        self._levels = torch.zeros(shape, dtype=torch.int8)
        self._scales = torch.zeros(shape[:-1], dtype=torch.float16)
        self.length = 0

    def k_levels(self, layer: int) -> NDArray[np.int8]:
        """K's levels of a layer, int8 [length, kv_heads, head_dim]."""
        return self._levels[0, layer, : self.length].numpy()

    def v_levels(self, layer: int) -> NDArray[np.int8]:
        """V's levels of a layer, int8 [length, kv_heads, head_dim]."""
        return self._levels[1, layer, : self.length].numpy()

    def k_scales(self, layer: int) -> NDArray[np.float16]:
        """K's scales of a layer, float16 [length, kv_heads]."""
        return self._scales[0, layer, : self.length].numpy()

    def v_scales(self, layer: int) -> NDArray[np.float16]:
        """V's scales of a layer, float16 [length, kv_heads]."""
        return self._scales[1, layer, : self.length].numpy()

    def put(self, kind: int, layer: int, levels: Tensor, scales: Tensor) -> None:
        """Write the new tokens' K (kind 0) or V (kind 1) of a layer, behind the `length` held."""
        end = self.length + levels.shape[0]
        self._levels[kind, layer, self.length : end] = levels
        self._scales[kind, layer, self.length : end] = scales

    def heads(self, kind: int, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """The first `end` tokens: levels [kv_heads, end, head_dim], scales [kv_heads, end]."""
        levels = self._levels[kind, layer, :end].transpose(0, 1)
        return levels, self._scales[kind, layer, :end].transpose(0, 1)


@dataclass(frozen=True)
class _Linear:
    """A projection ready to run."""

    weight: ops.GroupedWeight
    bias: Tensor | None

    @classmethod
    def of(cls, part: QuantLinear) -> _Linear:
        bias = None if part.bias is None else torch.from_numpy(part.bias)
        return cls(ops.GroupedWeight(part.weight), bias)

    def __call__(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return ops.linear(*x, self.weight, self.bias)

    def onto(self, residual: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
        """The new residual; a bias joins the residual before the product does."""
        if self.bias is not None:
            residual = ops.add(residual, self.bias)
        return ops.linear(*x, self.weight, residual)


class _Layer:
    """A decoder layer ready to run."""

    def __init__(self, layer: QuantLayer) -> None:
        self.attn_norm = torch.from_numpy(layer.attn_norm)
        self.mlp_norm = torch.from_numpy(layer.mlp_norm)
        self.q, self.k, self.v = (_Linear.of(part) for part in (layer.q, layer.k, layer.v))
        self.o, self.up, self.down = (_Linear.of(part) for part in (layer.o, layer.up, layer.down))
        self.gate = None if layer.gate is None else _Linear.of(layer.gate)


class IntegerModel:
    """Run a `QuantModel` in exact integer and float32 arithmetic.

    Parameters
    ----------
    model : the folded, quantised model. Its arrays are not changed.
    """

    def __init__(self, model: QuantModel) -> None:
        self.model = model
        self._layers = [_Layer(layer) for layer in model.layers]
        self._final_norm = torch.from_numpy(model.final_norm)
        self._head = _Linear.of(model.head)

    @torch.no_grad()
    def forward(
        self,
        ids: Sequence[int],
        cache: IntegerCache | None = None,
        *,
        last_only: bool = False,
        decode: bool = False,
        observe: Observer | None = None,
    ) -> NDArray[np.float32]:
        """Process new tokens behind those of the cache.

        Parameters
        ----------
        ids : token ids, one at least.
        cache : holds the tokens before and gets these; without it the ids start at position 0.
        last_only : run the head for the last token alone.
        decode : attend to everything, as decoding does, whatever prefill leaves out.
        observe : gets ("embedding" | "layers.{i}.q_heads" | "layers.{i}.attention" |
            "layers.{i}.attn_residual" | "layers.{i}.mlp_residual", float32 [T, n]).

        Returns
        -------
        Logits, float32 [T, vocab], or [1, vocab] with `last_only`.

        Raises
        ------
        InputError
            For no ids, an id outside the vocabulary, or more tokens than the maximum length.
        """
        cache = IntegerCache(self.model) if cache is None else cache
        self._check(ids, cache.length)
        look = observe or (lambda name, value: None)
        x = self._embed(ids, cache.length)
        look("embedding", x)
        for i, layer in enumerate(self.model.layers):
            patterns = layer.patterns if any_sparse(layer.patterns) and not decode else None
            x = self._attention_block(i, x, cache, look, patterns)
            look(f"layers.{i}.attn_residual", x)
            x = self._mlp_block(self._layers[i], x)
            look(f"layers.{i}.mlp_residual", x)
        cache.length += len(ids)
        x = x[-1:] if last_only else x
        logits: NDArray[np.float32] = self._head(self._norm(x, self._final_norm)).numpy()
        return logits

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Continue a prompt by the likeliest tokens, the lowest id among equals.

        Stops early only where the maximum length is reached.
        """
        cache = IntegerCache(self.model)
        out: list[int] = []
        step = list(ids)
        while len(out) < tokens and cache.length + len(step) <= self.model.max_length:
            logits = self.forward(step, cache, last_only=True, decode=bool(out))
            out.append(int(np.argmax(logits[0])))
            step = out[-1:]
        return out

    def _check(self, ids: Sequence[int], start: int) -> None:
        model = self.model
        if not len(ids):
            raise InputError("ids: empty; at least one token is needed")
        if not 0 <= min(ids) <= max(ids) < model.vocab:
            bad = next(i for i in ids if not 0 <= i < model.vocab)
            raise InputError(f"ids: {bad} is outside the vocabulary of {model.vocab}")
        if start + len(ids) > model.max_length:
            raise InputError(
                f"ids: {start + len(ids)} tokens exceed the maximum length of {model.max_length}"
            )

    def _embed(self, ids: Sequence[int], start: int) -> Tensor:
        rows = torch.from_numpy(self.model.embed[np.asarray(ids)].astype(np.float32))
        if self.model.positions is None:
            return rows
        learned = self.model.positions[start : start + len(ids)].astype(np.float32)
        return ops.add(rows, torch.from_numpy(learned))

    def _norm(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        return ops.norm_quant(x, gain, self.model.norm_eps)

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        if self.model.cos is None or self.model.sin is None:
            return x
        at = slice(start, start + x.shape[0])
        cos, sin = (torch.from_numpy(table[at]) for table in (self.model.cos, self.model.sin))
        return ops.rope(x, cos, sin)

    def _attention_block(
        self, i: int, x: Tensor, cache: IntegerCache, look: Observer,
        patterns: Sequence[Pattern] | None,
    ) -> Tensor:  # fmt: skip
        model, layer = self.model, self._layers[i]
        normed = self._norm(x, layer.attn_norm)
        q, k, v = (
            part(normed).view(-1, heads, model.head_dim)
            for part, heads in (
                (layer.q, model.heads),
                (layer.k, model.kv_heads),
                (layer.v, model.kv_heads),
            )
        )
        q, k = self._rotate(q, cache.length), self._rotate(k, cache.length)
        look(f"layers.{i}.q_heads", q.flatten(1))
        cache.put(0, i, *ops.head_quant(k, model.key_bits))
        cache.put(1, i, *ops.head_quant(v, model.value_bits))
        levels, scales = ops.query_quant(q)
        attended = torch.cat(
            [
                self._attend(
                    levels[part], scales[part], cache, i, cache.length + part.start, patterns
                )
                for part in self._chunks(x.shape[0], cache.length, patterns is not None)
            ]
        )
        look(f"layers.{i}.attention", attended)
        return layer.o.onto(x, ops.quantise(attended))

    def _chunks(self, tokens: int, start: int, blocks: bool) -> Iterator[slice]:
        """Split new tokens so that a chunk's scores stay few, and inside a block if `blocks`."""
        first = 0
        while first < tokens:
            count = max(1, SCORES_AT_A_TIME // (self.model.heads * (start + first + 1)))
            if blocks:
                count = min(count, BLOCK - (start + first) % BLOCK)
            yield slice(first, min(tokens, first + count))
            first += count

    def _attend(
        self, q: Tensor, q_scale: Tensor, cache: IntegerCache, i: int, start: int,
        patterns: Sequence[Pattern] | None,
    ) -> Tensor:  # fmt: skip
        """Attention of queries [T, heads, head_dim] at positions from `start`: [T, heads * hd].

        With `patterns` the queries lie in one block.
        """
        model = self.model
        tokens, end = q.shape[0], start + q.shape[0]
        split = (tokens, model.kv_heads, model.heads // model.kv_heads)
        # A KV head's queries, [kv_heads, heads that share it, T, ...], meet it in one product.
        q = q.reshape(*split, -1).permute(1, 2, 0, 3).flatten(1, 2)
        q_scale = q_scale.reshape(split).permute(1, 2, 0).flatten(1)
        (k, k_scale), (v, v_scale) = (cache.heads(kind, i, end) for kind in (0, 1))
        position = torch.arange(start, end)[:, None]
        key = torch.arange(end)
        valid = key <= position
        if model.window is not None:
            valid &= key > position - model.window
        moved = None if patterns is None else _moved(patterns, start // BLOCK, end)
        if moved is not None:
            head = torch.arange(model.kv_heads)[:, None]
            k, v, k_scale, v_scale = (part[head, moved.keys] for part in (k, v, k_scale, v_scale))
            valid = valid & moved.kept[:, None, None, :]
        score = ops.scores(q, q_scale, k, k_scale).view(model.kv_heads, -1, tokens, end)
        prob, scale = ops.softmax_prob(score, v_scale[:, None, None, :], valid)
        prob, scale = prob.flatten(1, 2), scale.flatten(1)
        out: Tensor
        if moved is None:
            out = ops.int_linear(prob, v, scale)
        else:
            first = moved.first[:, None]
            parts = [ops.int_linear(prob * part, v, scale) for part in (first, ~first)]
            two = moved.first.any(1)[:, None, None]
            out = torch.where(two, ops.add(*parts), parts[1])
        return out.view(model.heads, tokens, model.head_dim).transpose(0, 1).flatten(1)

    def _mlp_block(self, layer: _Layer, x: Tensor) -> Tensor:
        normed = self._norm(x, layer.mlp_norm)
        gate = None if layer.gate is None else layer.gate(normed)
        hidden = ops.activation(self.model.activation, layer.up(normed), gate)
        return layer.down.onto(x, ops.quantise(hidden))


@dataclass(frozen=True)
class _Moved:
    """Where each KV head finds the keys that a block of queries keeps.

    Members
    -------
    keys : int64 [kv_heads, end], the key that stands at each position: those of the first blocks
        stand right before the last ones. kept : bool, positions where a kept key stands. first :
        bool, where one of the first blocks does, which are summed apart.
    """

    keys: Tensor
    kept: Tensor
    first: Tensor


def _moved(patterns: Sequence[Pattern], block: int, end: int) -> _Moved:
    """The keys before `end` that queries of a block see."""
    position = torch.arange(end).expand(len(patterns), -1)
    first = torch.tensor([[pattern.first] for pattern in patterns])
    last = torch.tensor([[pattern.last] for pattern in patterns])
    left_out = (block + 1 - first - last).clamp(min=0) * BLOCK
    begin = left_out + first * BLOCK  # of the last run, where something lies between the two
    front = (left_out > 0) & (position < begin)
    return _Moved(
        torch.where(front, (position - left_out).clamp(min=0), position),
        position >= left_out,
        front & (position >= left_out),
    )
