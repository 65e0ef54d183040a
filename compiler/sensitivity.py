"""How much each matrix loses at each width: what the choice of mixed widths is made on.

Where the model is small enough, each matrix is rounded alone and the divergence of the model's
predictions on calibration text is measured. For large models, and without text, the relative
squared error of the matrix' output (with inputs of the observed size in each column) stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flightllm.compiler.block import linear
from flightllm.compiler.fold import FoldedEnds, FoldedLayer
from flightllm.compiler.gptq import round_plain
from flightllm.compiler.grid import grid_for
from flightllm.compiler.prune import Pruning, plain_mask
from flightllm.compiler.scheme import group_for
from flightllm.compiler.streams import Streams, divergence
from flightllm.models.config import ModelConfig

__all__ = ["SEQUENCES", "affordable", "by_divergence", "by_output_error"]

SEQUENCES = 8
"""Calibration texts on which a divergence is measured."""
WORK = 2e12
"""Floating-point operations that measuring divergences may take."""


def affordable(config: ModelConfig, tokens: int, widths: int) -> bool:
    """Whether every matrix can be tried at every width; on average half of the layers run."""
    runs = 7 * config.layers * widths / 2
    return runs * 2 * config.parameters * tokens <= WORK


def _rounded(weight: Tensor, bits: int, group: int, kept: int, energy: Tensor) -> Tensor:
    mask = plain_mask(weight, Pruning(kept), energy)
    made = round_plain(weight, grid_for(bits), group_for(weight.shape[1], group), mask, energy)
    return made.weight()


def by_divergence(
    layers: Sequence[FoldedLayer], ends: FoldedEnds, streams: Streams, widths: Sequence[int],
    group: int, kept: int = 16,
) -> NDArray[np.float64]:  # fmt: skip
    """Divergence of the model with one matrix rounded: [layers * matrices, widths]."""
    block = streams.exact
    states = [streams.x[:SEQUENCES]]
    for layer in layers:
        states.append(streams.run(layer, states[-1], block))
    valid = (streams.fitted | streams.held)[:SEQUENCES]

    def logits(x: Tensor) -> Tensor:
        return linear(block.norm(x[valid], ends.final_norm), ends.head, ends.head_bias)

    target = logits(states[-1])
    losses = []
    for at, layer in enumerate(layers):
        inputs = streams.inputs(layer, states[at], block)
        for name, weight in layer.weights.items():
            energy = inputs[name][valid].square().mean(0)
            for bits in widths:
                made = _rounded(weight, bits, group, kept, energy)
                x = streams.run(layer.with_weights({name: made}, {}), states[at], block)
                for later in layers[at + 1 :]:
                    x = streams.run(later, x, block)
                losses.append(divergence(target, logits(x))[0])
    return np.array(losses).reshape(-1, len(widths))


def by_output_error(
    layers: Iterable[FoldedLayer], streams: Streams | None, widths: Sequence[int], group: int,
    kept: int = 16,
) -> NDArray[np.float64]:  # fmt: skip
    """Relative squared output error of each matrix: [layers * matrices, widths].

    Parameters
    ----------
    streams : the calibration text, or None: all columns' inputs are then taken to be alike.
    """
    x = None if streams is None else streams.x[:SEQUENCES]
    losses = []
    for layer in layers:
        inputs: dict[str, Tensor] = {}
        if streams is not None and x is not None:
            inputs = streams.inputs(layer, x, streams.exact)
            x = streams.run(layer, x, streams.exact)
        for name, weight in layer.weights.items():
            energy = inputs[name].square().mean((0, 1)) if inputs else torch.ones(weight.shape[1])
            whole = (weight.square() @ energy).sum().clamp(min=1e-30)
            for bits in widths:
                miss = weight - _rounded(weight, bits, group, kept, energy)
                losses.append(float((miss.square() @ energy).sum() / whole))
    return np.array(losses).reshape(-1, len(widths))
