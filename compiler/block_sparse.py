"""Block-sparse attention for prefill: which blocks of keys each KV head keeps, from calibration.

A pattern keeps the first blocks of a text and the last ones before the query, which is where
attention that is not spread out lies. It is two numbers a KV head (query heads that share one share
its keys' stream), so it serves every length. The patterns of least lost attention under a density
come out of an integer program. What a device has to do for them is in
docs/adr/0010-block-sparse-attention.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flightllm.compiler import calibrate
from flightllm.compiler.block import Block
from flightllm.compiler.block_patterns import candidates, refuse_window, text_size, too_little
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import MATRICES, FoldedEnds, FoldedLayer, fold_ends, fold_layer
from flightllm.compiler.ladder import perplexity
from flightllm.compiler.mixed import solve_choices
from flightllm.compiler.quant_report import PassReport
from flightllm.compiler.scheme import QuantOptions
from flightllm.models.checkpoint import Checkpoint
from flightllm.models.patterns import Pattern
from flightllm.models.quantized import QuantLayer, QuantModel

__all__ = ["BlockMasks", "MaskedAttention", "choose_masks", "masked_perplexity"]


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
    x = _start(ends, text.ids)
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
        raise too_little(density, tokens)
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
    x = _start(ends, text.ids)
    for index in range(config.layers):
        block = plain
        if masks is not None:
            block = plain.keeping(masks.patterns[index], tokens)
        layer = fold_layer(checkpoint, index)
        x = torch.cat([block.run(layer, part) for part in x.split(4)])
    return perplexity(plain.logits(x, ends), text.ids, text.valid)


def _layer_of(layer: QuantLayer) -> FoldedLayer:
    parts = {name: getattr(layer, name) for name in MATRICES if getattr(layer, name) is not None}
    return FoldedLayer(
        torch.from_numpy(layer.attn_norm),
        torch.from_numpy(layer.mlp_norm),
        {name: torch.from_numpy(part.weight.dequantised()) for name, part in parts.items()},
        {n: torch.from_numpy(part.bias) for n, part in parts.items() if part.bias is not None},
    )


class MaskedAttention:
    """The pass: patterns under a density, and what they cost the quantised model.

    Parameters
    ----------
    options : `attention_density`, `calibrate` and `seed`. progress : as of `quantise`.

    Members
    -------
    masks : what was chosen, on all texts but an eighth. held : that eighth.

    Raises
    ------
    InputError : see `choose_masks`; for a model with a sliding window.
    """

    def __init__(
        self, checkpoint: Checkpoint, options: QuantOptions,
        progress: Callable[[str, int, int], None],
    ) -> None:  # fmt: skip
        config = self.config = checkpoint.config
        refuse_window(config)
        count, length = text_size(config)
        if options.calibrate == "auto":
            text = calibrate.sampled(
                checkpoint, count, length, options.seed,
                lambda done, total: progress("sample text for attention", done, total),
            )  # fmt: skip
        else:
            text = calibrate.from_file(checkpoint, options.calibrate, count, length)
        progress("choose attention patterns", 0, 1)
        held = max(1, len(text.ids) // 8) if len(text.ids) > 1 else 0
        fitted = replace(text, ids=text.ids[held:], valid=text.valid[held:])
        self.held = replace(text, ids=text.ids[:held], valid=text.valid[:held]) if held else text
        self.masks = choose_masks(checkpoint, fitted, options.attention_density)
        progress("choose attention patterns", 1, 1)
        self._checkpoint = checkpoint

    @torch.no_grad()
    def report(self, model: QuantModel, size: PassReport) -> PassReport:
        """What the patterns in `model` cost it on the held-out text; `size` says its bits."""
        config, text = self.config, self.held
        tokens, bits = text.ids.shape[1], (model.key_bits, model.value_bits)
        exact = Block.of(config, tokens, bits, quantised=False)
        dense = Block.of(config, tokens, bits, quantised=True)
        ends, made = fold_ends(self._checkpoint), _ends_of(model)
        x, y = (_start(part, text.ids) for part in (ends, made))
        z, errors = y, []
        for index, layer in enumerate(model.layers):
            quantised = _layer_of(layer)
            x = _run(exact, fold_layer(self._checkpoint, index), x)
            y = _run(dense, quantised, y)
            z = _run(dense.keeping(layer.patterns, tokens), quantised, z)
            miss = (z - x)[text.valid].norm() / x[text.valid].norm().clamp(min=1e-20)
            errors.append(float(miss))
        before, after = (
            perplexity(dense.logits(part, made), text.ids, text.valid) for part in (y, z)
        )
        method = f"{self.masks.density:.1%} of causal blocks at {self.masks.tokens} tokens"
        return PassReport(
            "attention", method, size.bits, size.bytes, tuple(errors), before, after
        )


def _ends_of(model: QuantModel) -> FoldedEnds:
    head, positions = model.head, model.positions
    return FoldedEnds(
        torch.from_numpy(model.embed.astype(np.float32)),
        None if positions is None else torch.from_numpy(positions.astype(np.float32)),
        torch.from_numpy(model.final_norm),
        torch.from_numpy(head.weight.dequantised()),
        None if head.bias is None else torch.from_numpy(head.bias),
    )


def _start(ends: FoldedEnds, ids: Tensor) -> Tensor:
    x = ends.embed[ids]
    return x if ends.positions is None else x + ends.positions[: ids.shape[1]]


def _run(block: Block, layer: FoldedLayer, x: Tensor) -> Tensor:
    return torch.cat([block.run(layer, part) for part in x.split(1)])
