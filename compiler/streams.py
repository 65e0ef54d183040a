"""The two streams of calibration, the float model's and the quantised one's, layer by layer.

Both start at the embedding. Before a matrix is quantised its inputs in both streams are turned into
moments (`Moments`); afterwards the quantised stream goes on with the quantised matrix, so that each
matrix sees, and makes up for, the errors of all before it. An eighth of the texts is held out of
the moments and measures what was achieved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flightllm.compiler.block import Block, linear
from flightllm.compiler.calibrate import Calibration
from flightllm.compiler.fold import FoldedEnds, FoldedLayer
from flightllm.models.config import ModelConfig

__all__ = ["Moments", "Streams", "divergence"]

PART_TOKENS = 1 << 12
"""Tokens that attention and the head work on at a time."""
DOUBLE_BELOW = 1024
"""Moments of up to this many columns are summed in float64."""


@dataclass(frozen=True)
class Moments:
    """What calibration knows of a linear's input, averaged over tokens.

    Members
    -------
    hessian : [K, K], the quantised stream's input with itself. drift : [K, K], the difference of
        the float and the quantised stream's input, with the latter. owed : [rows, K], the
        difference of the residual streams that this linear adds to, with the input; or None.
    mean, float_mean : [K], mean inputs of both streams.
    """

    hessian: Tensor
    drift: Tensor
    owed: Tensor | None
    mean: Tensor
    float_mean: Tensor


class Streams:
    """Hidden states of the calibration text.

    Parameters
    ----------
    config, ends : the folded model. calibration : its text. kv_bits : 8 or 4, of
        both or of K and V.

    Members
    -------
    x, y : float32 [B, T, dim], the residual stream of the float and of the quantised model.
    exact, rounded : the `Block` of each.
    ids, valid : int64 and bool [B, T], the text and which tokens are of it; `fitted` those in the
        moments, `held` those held out.
    """

    def __init__(
        self, config: ModelConfig, ends: FoldedEnds, calibration: Calibration,
        kv_bits: int | tuple[int, int],
    ) -> None:
        ids = self.ids = calibration.ids
        self.exact, self.rounded = (
            Block.of(config, ids.shape[1], kv_bits, quantised) for quantised in (False, True)
        )
        self.x = ends.embed[ids]
        self.y = ends.embed.half().float()[ids]
        if ends.positions is not None:
            self.x = self.x + ends.positions[: ids.shape[1]]
            self.y = self.y + ends.positions[: ids.shape[1]].half().float()
        held = max(1, ids.shape[0] // 8) if ids.shape[0] > 1 else 0
        self.valid = calibration.valid
        self.fitted = calibration.valid.clone()
        self.fitted[ids.shape[0] - held :] = False
        self.held = calibration.valid & ~self.fitted if held else calibration.valid

    def by_parts(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """A function of whole sequences, applied to a few at a time."""
        count = max(1, PART_TOKENS // tensors[0].shape[1])
        parts = zip(*(tensor.split(count) for tensor in tensors))
        return torch.cat([function(*part) for part in parts])

    def moments(self, h: Tensor, g: Tensor, residual: bool = False) -> Moments:
        """Moments of a linear's input in the float (h) and the quantised (g) stream [B, T, K].

        With `residual` the linear's output is added to x and y.
        """
        kind = torch.float64 if h.shape[-1] <= DOUBLE_BELOW else torch.float32
        exact, rounded = h[self.fitted].to(kind), g[self.fitted].to(kind)
        count = max(1, len(exact))
        owed = None
        if residual:
            owed = (self.x - self.y)[self.fitted].to(kind).T @ rounded / count
        return Moments(
            rounded.T @ rounded / count,
            (exact - rounded).T @ rounded / count,
            owed,
            rounded.mean(0),
            exact.mean(0),
        )

    def heads(self, layer: FoldedLayer, h: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """See `Block.projected`."""
        return block.projected(layer, h)

    def attention(self, layer: FoldedLayer, h: Tensor, block: Block) -> Tensor:
        """The o projection's input, from the layer's normed input."""
        return self.by_parts(lambda part: block.attention(*block.projected(layer, part)), h)

    def inner(self, layer: FoldedLayer, h: Tensor, block: Block) -> Tensor:
        """See `Block.inner`."""
        return block.inner(layer, h)

    def run(self, layer: FoldedLayer, x: Tensor, block: Block) -> Tensor:
        """A whole layer: the residual stream after it."""
        return self.by_parts(lambda part: block.run(layer, part), x)

    def inputs(self, layer: FoldedLayer, x: Tensor, block: Block) -> dict[str, Tensor]:
        """Each matrix' input [B, T, K]; matrices that share one share the tensor."""
        h = block.norm(x, layer.attn_norm)
        attended = self.attention(layer, h, block)
        middle = x + linear(attended, layer.weights["o"], layer.biases.get("o"))
        g = block.norm(middle, layer.mlp_norm)
        inner = self.inner(layer, g, block)
        named = {"q": h, "k": h, "v": h, "o": attended, "gate": g, "up": g, "down": inner}
        return {name: named[name] for name in layer.weights}

    def add(
        self, name: str, layer: FoldedLayer, rounded: FoldedLayer, h: Tensor, g: Tensor
    ) -> None:
        """Add the output of "o" or "down" to the residual streams."""
        self.x = self.x + linear(h, layer.weights[name], layer.biases.get(name))
        self.y = self.y + linear(g, rounded.weights[name], rounded.biases.get(name))

    def mean_owed(self) -> Tensor:
        """Mean difference of the residual streams [dim]."""
        return (self.x - self.y)[self.fitted].double().mean(0)

    def residual_error(self) -> float:
        """Relative root-mean-square difference of the streams on the held-out text."""
        x, y = self.x[self.held], self.y[self.held]
        return float((x - y).norm() / x.norm().clamp(min=1e-20))


def divergence(exact: Tensor, rounded: Tensor) -> tuple[float, float]:
    """Mean Kullback-Leibler divergence of logits [n, vocab], nats, and agreement of the best."""
    first, second = (torch.log_softmax(part.double(), -1) for part in (exact, rounded))
    mean = (first.exp() * (first - second)).sum(-1).mean()
    return float(mean), float((exact.argmax(-1) == rounded.argmax(-1)).double().mean())
