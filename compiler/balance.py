"""Balance linears' inputs: scale channels so that INT8 vectors, and the weights, lose least.

An input's channel divided by f and the weights' column multiplied by f leave the product as it is.
The division folds into what makes the input: a norm's gain, the rows of Wv (attention's output
keeps V's channels), or the rows of up (SiLU's gate multiplies it; ReLU passes a positive factor).
The input of q, k and v is left alone: what it gains was measured to be less than what the weights
of a turned K lose by it.

The loss is the expected squared error of the outputs. A vector's step is its largest magnitude over
127, so a large channel of little weight is worth shrinking; a weight's error grows with the size of
its group, so columns that the channel's input makes important are worth enlarging.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flightllm.compiler.fold import FoldedLayer
from flightllm.compiler.gptq import round_plain
from flightllm.compiler.grid import grid_for
from flightllm.compiler.scheme import group_for
from flightllm.models.config import ModelConfig

__all__ = ["Reader", "apply_balance", "balance_layer", "best_factors", "input_loss"]

STEPS = 120
RATE = 0.03
SAMPLED_TOKENS = 1024
WORK = 1 << 27
"""Input elements that a search may go over; it takes fewer steps (at least 20) where it must."""


@dataclass(frozen=True)
class Reader:
    """A matrix that reads the input.

    Members
    -------
    cost : float32 [K], what a unit error of each channel costs: the column's squared weights.
    share : squared error that rounding the weights makes, as a share of the squared weights.
    group : columns that share a scale.
    """

    cost: Tensor
    share: float
    group: int

    @classmethod
    def of(cls, weight: Tensor, bits: int, group: int, rows: Tensor | None = None) -> Reader:
        """A matrix [rows, K] to be rounded to `bits`; `rows` weighs its outputs' errors."""
        group = group_for(weight.shape[1], group)
        made = round_plain(weight, grid_for(bits), group).weight()
        share = (weight - made).square().sum() / weight.square().sum().clamp(min=1e-30)
        counted = weight.square() if rows is None else weight.square() * rows[:, None]
        return cls(counted.sum(0), float(share), group)


def _grouped(values: Tensor, group: int) -> Tensor:
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % group))
    grouped: Tensor = padded.unflatten(-1, (-1, group))
    return grouped


def input_loss(x: Tensor, readers: list[Reader], factor: Tensor) -> Tensor:
    """Expected squared output error of all readers, summed over tokens: a scalar.

    Parameters
    ----------
    x : inputs [n, K] before they are divided by `factor` [K].
    """
    square = factor.square()
    step = (x / factor).abs().amax(-1) / 127
    loss = x.new_zeros(())
    energy = x.square().sum(0) / square
    for reader in readers:
        scaled = reader.cost * square
        loss = loss + step.square().sum() / 12 * scaled.sum()
        count = _grouped(torch.ones_like(scaled), reader.group).sum(-1)
        mean = _grouped(scaled, reader.group).sum(-1) / count
        loss = loss + reader.share * (mean * _grouped(energy, reader.group).sum(-1)).sum()
    return loss


def best_factors(x: Tensor, readers: list[Reader], spread: Tensor | None = None) -> Tensor:
    """What to divide an input's channels by.

    Parameters
    ----------
    x : inputs [n, K] of calibration text.
    spread : int64 [K], the free factor that each channel uses (channels of V that several heads
        read), or None for one a channel.

    Returns
    -------
    float32 [K], positive, with a geometric mean of 1; all ones where nothing is gained.
    """
    x = x[:: max(1, len(x) // SAMPLED_TOKENS)]
    place = torch.arange(x.shape[1]) if spread is None else spread
    free = torch.zeros(int(place.max()) + 1)
    start = float(input_loss(x, readers, torch.ones(x.shape[1])).clamp(min=1e-30))
    best, least = free.clone(), 1.0
    steps = max(20, min(STEPS, WORK // x.numel()))
    with torch.enable_grad():
        free.requires_grad_()
        optimiser = torch.optim.Adam([free], lr=RATE)
        for step in range(steps):
            loss = input_loss(x, readers, free.exp()[place]) / start
            if float(loss.detach()) < least:
                best, least = free.detach().clone(), float(loss.detach())
            optimiser.zero_grad()
            loss.log().backward()
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            optimiser.step()
    return (best - best.mean()).exp()[place]


def apply_balance(
    layer: FoldedLayer, maker: str, names: tuple[str, ...], factor: Tensor,
    maker_rows: Tensor | None = None,
) -> FoldedLayer:  # fmt: skip
    """The layer with an input divided by `factor` [K] and its readers' columns multiplied.

    Parameters
    ----------
    maker : "attn_norm" or "mlp_norm" (its gain is divided), "v" or "up" (its rows, by
        `maker_rows` where these are not the channels).
    names : the readers.
    """
    weights = {name: layer.weights[name] * factor for name in names}
    if maker in ("attn_norm", "mlp_norm"):
        return layer.with_weights(weights, {}, **{maker: getattr(layer, maker) / factor})
    rows = factor if maker_rows is None else maker_rows
    weights[maker] = layer.weights[maker] / rows[:, None]
    biases = {maker: layer.biases[maker] / rows} if maker in layer.biases else {}
    return layer.with_weights(weights, biases)


def balance_layer(
    layer: FoldedLayer, inputs: Mapping[str, Tensor], config: ModelConfig,
    widths: Mapping[str, int], group: int, curvature: Mapping[str, Tensor] | None = None,
) -> FoldedLayer:  # fmt: skip
    """The layer with the inputs of o, the MLP and down balanced, as far as they can be.

    Parameters
    ----------
    inputs : of each matrix, [n, K]. widths : bits of each matrix.
    curvature : weight of the error of each output, [rows] by matrix; None counts an error relative
        to the matrix' mean squared output.
    """
    made = layer

    def counted(name: str) -> Tensor:
        if curvature is not None:
            return curvature[name]
        weight = layer.weights[name]
        output = weight.square().sum(0) @ inputs[name].square().mean(0)
        return torch.full((weight.shape[0],), 1 / float(output.clamp(min=1e-30)))

    def factors(names: tuple[str, ...], spread: Tensor | None = None) -> Tensor:
        readers = [
            Reader.of(made.weights[name], widths[name], group, counted(name)) for name in names
        ]
        return best_factors(inputs[names[0]], readers, spread)

    shared = config.heads // config.kv_heads
    channel = torch.arange(config.kv_heads * config.head_dim).view(config.kv_heads, 1, -1)
    spread = channel.expand(-1, shared, -1).flatten()
    factor = factors(("o",), spread)
    rows = factor.view(config.kv_heads, shared, -1)[:, 0].flatten()
    made = apply_balance(made, "v", ("o",), factor, rows)
    if config.activation in ("silu", "relu"):
        made = apply_balance(made, "up", ("down",), factors(("down",)))
    readers = tuple(name for name in ("gate", "up") if name in layer.weights)
    return apply_balance(made, "mlp_norm", readers, factors(readers))
