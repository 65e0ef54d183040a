"""Block-sparse attention for prefill: which blocks of keys each KV head keeps, from calibration.

A pattern keeps the first blocks of a text and the last ones before the query, which is where
attention that is not spread out lies. It is two numbers a KV head (query heads that share one share
its keys' stream), so it serves every length. The patterns of least lost attention under a density
come out of an integer program. What a device has to do for them is in
docs/adr/0010-block-sparse-attention.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flightllm.compiler.block import Block
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import fold_ends, fold_layer
from flightllm.compiler.ladder import perplexity
from flightllm.compiler.mixed import solve_choices
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.patterns import DENSE, Pattern
from flightllm.spec.errors import InputError
from flightllm.spec.formats import BLOCK

__all__ = ["BlockMasks", "candidates", "choose_masks", "masked_perplexity"]


@dataclass(frozen=True)
class BlockMasks:
    """The patterns of a model.

    Members
    -------
    patterns : by layer and KV head. lost : mean share of a query's attention that they drop, on
        the calibration text. density : blocks kept of those that are causal, at `tokens` tokens.
    """

    patterns: tuple[tuple[Pattern, ...], ...]
    lost: float
    density: float
    tokens: int

    def __str__(self) -> str:
        lines = [
            f"block-sparse attention: density {self.density:.1%} of causal at {self.tokens} tokens,"
            f" {self.lost:.2%} of attention lost"
        ]
        for index, heads in enumerate(self.patterns):
            lines.append(f"  layer {index}: {', '.join(map(str, heads))}")
        return "\n".join(lines) + "\n"


def candidates(tokens: int) -> tuple[Pattern, ...]:
    """Patterns to choose from, dense among them."""
    count = -(-tokens // BLOCK)
    lasts = [last for last in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if last < count]
    sparse = [Pattern(first, last) for first in (0, 1, 2) for last in lasts if first + last < count]
    return (*sparse, DENSE)


def _lost(q: Tensor, k: Tensor, block: Block, valid: Tensor, choices: Sequence[Pattern]) -> Tensor:
    """Attention that each pattern drops, summed over queries: float64 [kv_heads, choices].

    Parameters
    ----------
    q, k : of one text, [heads, T, head_dim] and [kv_heads, T, head_dim], after RoPE.
    valid : bool [T].
    """
    tokens, shared = q.shape[1], len(q) // len(k)
    score = q @ k.repeat_interleave(shared, dim=0).transpose(-1, -2) / q.shape[-1] ** 0.5
    chance = torch.softmax(score.masked_fill(~block.seen(tokens), -torch.inf), -1)
    chance = chance.unflatten(0, (len(k), shared)).sum(1)[:, valid].double()
    kept = [torch.from_numpy(pattern.keeps(tokens))[valid] for pattern in choices]
    dropped = [(chance * ~part).sum((1, 2)) for part in kept]
    return torch.stack(dropped, -1) / shared


@torch.no_grad()
def choose_masks(checkpoint: Checkpoint, text: Calibration, density: float) -> BlockMasks:
    """The patterns that lose least attention under a mean density.

    Parameters
    ----------
    text : calibration text; the density is meant at its length.
    density : blocks kept of those that dense causal attention reads, over 0 to 1.

    Raises
    ------
    InputError : when even one block a query is more than the density.
    """
    config, tokens = checkpoint.config, text.ids.shape[1]
    choices = candidates(tokens)
    block = Block.of(config, tokens, 8, quantised=False)
    ends = fold_ends(checkpoint)
    x = ends.embed[text.ids]
    if ends.positions is not None:
        x = x + ends.positions[:tokens]
    losses = torch.zeros(config.layers, config.kv_heads, len(choices), dtype=torch.float64)
    for index in range(config.layers):
        layer = fold_layer(checkpoint, index)
        for row in range(len(x)):
            h = block.norm(x[row : row + 1], layer.attn_norm)
            q, k, _ = block.projected(layer, h)
            losses[index] += _lost(q[0], k[0], block, text.valid[row], choices)
        x = torch.cat([block.run(layer, part) for part in x.split(4)])
    losses /= text.valid.sum()
    flat = losses.flatten(0, 1).numpy()
    share = np.array([pattern.density(tokens) for pattern in choices])
    picked = solve_choices(flat, np.tile(share / len(flat), (len(flat), 1)), density + 1e-9)
    if not picked.size:
        least = min(share)
        raise InputError(
            f"density: {density:g} is less than the {least:.3f} that one block a query takes"
            f" at {tokens} tokens"
        )
    chosen = [choices[i] for i in picked]
    heads = config.kv_heads
    patterns = tuple(
        tuple(chosen[at : at + heads]) for at in range(0, config.layers * heads, heads)
    )
    lost = float(flat[np.arange(len(flat)), picked].mean())
    return BlockMasks(patterns, lost, float(share[picked].mean()), tokens)


@torch.no_grad()
def masked_perplexity(
    checkpoint: Checkpoint, text: Calibration, masks: BlockMasks | None
) -> float | None:
    """Perplexity of the float model whose attention keeps what the masks keep (None: all)."""
    config, tokens = checkpoint.config, text.ids.shape[1]
    plain = Block.of(config, tokens, 8, quantised=False)
    ends = fold_ends(checkpoint)
    x = ends.embed[text.ids]
    if ends.positions is not None:
        x = x + ends.positions[:tokens]
    for index in range(config.layers):
        block = plain
        if masks is not None:
            block = plain.keeping(masks.patterns[index], tokens)
        layer = fold_layer(checkpoint, index)
        x = torch.cat([block.run(layer, part) for part in x.split(4)])
    return perplexity(plain.logits(x, ends), text.ids, text.valid)
