"""Scale channels between matrices: three ways to choose the factors, one way to fold them.

A linear's input divided by a factor per channel, and its weights' columns multiplied, leave the
product as it is; what makes the input takes up the division (`balance.py`).

- "balance", the default, minimises the expected error of both, INT8 vectors and rounded weights.
- "awq" (arXiv 2306.00978): s = (mean |x|)^a, normalised by sqrt(max s * min s); a is the one of
  0, 0.05 ... 0.95 with the least squared error of the rounded weights' outputs. Behind norms, from
  up to down, and from v to o where every head has its own V.
- "smoothquant" (arXiv 2211.10438): s = (max |x|)^a / (max |W|)^(1 - a) with a = 1/2. Behind norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flightllm.compiler.balance import Reader, apply_balance, balance_layer, best_factors
from flightllm.compiler.fold import FoldedLayer
from flightllm.compiler.gptq import round_plain
from flightllm.compiler.grid import grid_for
from flightllm.compiler.scheme import group_for
from flightllm.models.config import ModelConfig

__all__ = ["awq_factor", "head_factor", "scale_layer", "smoothquant_factor"]

SEARCH_TOKENS = 512
"""Inputs on which AWQ's exponent is searched."""
EXPONENTS = tuple(step / 20 for step in range(20))
LEAST = 1e-5
"""Smallest magnitude and factor, so that silent channels divide nothing by zero."""


def awq_factor(x: Tensor, weights: Sequence[Tensor], bits: Sequence[int], group: int) -> Tensor:
    """What to divide an input's channels by, as AWQ does.

    Parameters
    ----------
    x : inputs [n, K] of calibration text. weights : of its readers, [rows, K] each. bits : of each.

    Returns
    -------
    float32 [K].
    """
    x = x[:: max(1, len(x) // SEARCH_TOKENS)]
    size = x.abs().mean(0).clamp(min=LEAST)
    best, least = torch.ones_like(size), torch.inf
    for exponent in EXPONENTS:
        factor = size**exponent
        factor = factor / (factor.max() * factor.min()).sqrt()
        loss = 0.0
        for weight, width in zip(weights, bits):
            fitting = group_for(weight.shape[1], group)
            made = round_plain(weight * factor, grid_for(width), fitting, clip=False).weight()
            loss += float(((x / factor) @ made.T - x @ weight.T).square().sum())
        if loss < least:
            best, least = factor, loss
    return best


def smoothquant_factor(x: Tensor, weights: Sequence[Tensor], strength: float = 0.5) -> Tensor:
    """What to divide an input's channels by, as SmoothQuant does.

    Parameters
    ----------
    x : inputs [n, K]. weights : of its readers. strength : how much of the inputs' spread moves to
        the weights, 0 to 1.

    Returns
    -------
    float32 [K].
    """
    inputs = x.abs().amax(0).clamp(min=LEAST)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=LEAST)
    return (inputs**strength / columns ** (1 - strength)).clamp(min=LEAST)


def _sites(
    method: str, layer: FoldedLayer, config: ModelConfig
) -> list[tuple[str, tuple[str, ...]]]:
    """Where a published method scales: what makes the input, and the matrices that read it."""
    mlp = tuple(name for name in ("gate", "up") if name in layer.weights)
    sites: list[tuple[str, tuple[str, ...]]] = [("attn_norm", ("q", "k", "v")), ("mlp_norm", mlp)]
    if method == "awq":
        if config.heads == config.kv_heads:
            sites.append(("v", ("o",)))
        if config.activation in ("silu", "relu"):
            sites.append(("up", ("down",)))
    return sites


def scale_layer(
    method: str, layer: FoldedLayer, inputs: Mapping[str, Tensor], config: ModelConfig,
    widths: Mapping[str, int], group: int, curvature: Mapping[str, Tensor] | None = None,
) -> FoldedLayer:  # fmt: skip
    """The layer with its channels scaled; its function stays.

    Parameters
    ----------
    method : "balance", "awq", "smoothquant" or "none". The others : as for `balance_layer`.
    """
    if method == "none":
        return layer
    if method == "balance":
        return balance_layer(layer, inputs, config, widths, group, curvature)
    for maker, names in _sites(method, layer, config):
        x, weights = inputs[names[0]], [layer.weights[name] for name in names]
        if method == "awq":
            factor = awq_factor(x, weights, [widths[name] for name in names], group)
        else:
            factor = smoothquant_factor(x, weights)
        layer = apply_balance(layer, maker, names, factor)
    return layer


def head_factor(
    method: str, x: Tensor, head: Tensor, bits: int, group: int, rows: Tensor | None
) -> Tensor:
    """What to divide the last projection's input [n, dim] by: float32 [dim].

    Parameters
    ----------
    rows : weight of each logit's error, for "balance".
    """
    match method:
        case "balance":
            return best_factors(x, [Reader.of(head, bits, group, rows)])
        case "awq":
            return awq_factor(x, [head], [bits], group)
        case "smoothquant":
            return smoothquant_factor(x, [head])
        case _:
            return torch.ones(head.shape[1])
