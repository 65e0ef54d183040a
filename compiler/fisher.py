"""How much the model's predictions react to errors of each linear's outputs (Fisher information).

One backward pass over sampled text, with next tokens drawn from the model's own predictions: the
mean squared gradient of a log probability by an output is the curvature of the divergence that an
error of this output causes. Needs all layers in memory at once, so only small models get it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flightllm.compiler.block import linear
from flightllm.compiler.fold import FoldedEnds, FoldedLayer
from flightllm.compiler.streams import PART_TOKENS, Streams
from flightllm.models.config import ModelConfig

__all__ = ["SEQUENCES", "affordable", "output_curvature"]

SEQUENCES = 32
WORK = 1e12
"""Floating-point operations that the passes may take."""
LARGEST = 1 << 28
"""Weights of a model that may lie in memory as a whole."""

Curvature = list[dict[str, Tensor]]


def affordable(config: ModelConfig, tokens: int) -> bool:
    """Whether the model is small enough for it."""
    return config.parameters <= LARGEST and 6 * config.parameters * tokens <= WORK


def _gradients(
    layers: Sequence[FoldedLayer], ends: FoldedEnds, streams: Streams, rows: slice,
    generator: torch.Generator,
) -> tuple[list[dict[str, Tensor]], Tensor]:  # fmt: skip
    """Gradients by each linear's outputs [B, T, rows], and the distributions [n, vocab]."""
    block, x, valid = streams.exact, streams.x[rows], streams.valid[rows]
    probes: list[dict[str, Tensor]] = []
    with torch.enable_grad():
        for layer in layers:
            # A zero added to an output has the output's gradient.
            probe = {
                name: torch.zeros(*x.shape[:2], weight.shape[0], requires_grad=True)
                for name, weight in layer.weights.items()
            }
            biases = {name: zero + layer.biases.get(name, 0) for name, zero in probe.items()}
            x = streams.run(layer.with_weights({}, biases), x, block)
            probes.append(probe)
        logits = linear(block.norm(x, ends.final_norm)[valid], ends.head, ends.head_bias)
        log = torch.log_softmax(logits, -1)
        chance = log.detach().exp()
        drawn = torch.multinomial(chance, 1, generator=generator)
        flat = [zero for probe in probes for zero in probe.values()]
        found = iter(torch.autograd.grad(log.gather(1, drawn).sum(), flat))
    return [{name: next(found) for name in probe} for probe in probes], chance


def output_curvature(
    layers: Sequence[FoldedLayer], ends: FoldedEnds, streams: Streams, seed: int
) -> tuple[Curvature, Tensor]:
    """Mean squared gradients of the log probability of a drawn token.

    Parameters
    ----------
    streams : at the embedding. seed : of the tokens drawn.

    Returns
    -------
    For each layer {matrix: float32 [rows]}; and for the head float32 [vocab].
    """
    generator = torch.Generator().manual_seed(seed)
    total: Curvature = [
        {name: torch.zeros(weight.shape[0]) for name, weight in layer.weights.items()}
        for layer in layers
    ]
    head, count = torch.zeros(ends.head.shape[0]), 0
    step = max(1, PART_TOKENS // streams.x.shape[1])
    for first in range(0, min(SEQUENCES, len(streams.x)), step):
        rows = slice(first, first + step)
        gradients, chance = _gradients(layers, ends, streams, rows, generator)
        for sums, found in zip(total, gradients):
            for name, gradient in found.items():
                sums[name] += gradient.square().sum((0, 1))
        head += (chance * (1 - chance)).sum(0)
        count += len(chance)
    for sums in total:
        for name in sums:
            sums[name] /= count
    return total, head / count
