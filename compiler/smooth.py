"""K smoothing: turn and scale K's channels, and Q's to match, so that their INT8 scores lose least.

RoPE turns pairs of channels, and so commutes with any turn and scaling of a pair. K's pair turned
by an angle and divided by a factor, with Q's pair turned alike and multiplied, leaves every score
as it is; all query heads that share a K head share both. It folds into Wq and Wk. Scaling evens
out pairs of different size; turning shares one large channel between the two of its pair.

The loss that is minimised is the expected square of the scores' rounding errors, weighed by how
much the attention distribution reacts to each score, p (1 - p). It counts the rounding of Wq and Wk
too: a turn that mixes a large channel into a small one spoils the small one's weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flightllm.compiler.block import Block
from flightllm.compiler.fold import FoldedLayer
from flightllm.compiler.gptq import round_plain
from flightllm.compiler.grid import grid_for
from flightllm.compiler.scheme import group_for
from flightllm.models.config import ModelConfig

__all__ = [
    "Smoothing",
    "apply_smoothing",
    "row_factors",
    "smoothing_from_heads",
    "smoothing_from_weights",
    "weight_noise",
]

STEPS = 150
RATE = 0.05
SAMPLED_TOKENS = 2048
"""Keys, and queries, on which the search runs."""


@dataclass(frozen=True)
class Smoothing:
    """What K's pairs (2i, 2i + 1) are turned by and divided by, float32 [kv_heads, head_dim / 2].

    Q's pairs are turned by the same angle and multiplied by the factor.
    """

    angle: Tensor
    factor: Tensor

    def turned(self, heads: Tensor, power: int) -> Tensor:
        """Pairs [..., kv_heads, n, 2] turned and multiplied with factor ** power."""
        size = self.factor**power
        c, s = self.angle.cos() * size, self.angle.sin() * size
        first, second = heads.unbind(-1)
        return torch.stack((first * c - second * s, second * c + first * s), -1)

    def by_powers_of_two(self) -> Smoothing:
        """The same with factors that change no bit of a scale but its exponent."""
        return replace(self, factor=torch.exp2(self.factor.log2().round()))


@dataclass(frozen=True)
class _Case:
    """Keys and queries with what an error of their pairs costs.

    Members
    -------
    keys : [n, kv_heads, pairs, 2]; queries : [shared, n, kv_heads, pairs, 2].
    key_cost : [n, kv_heads, pairs], squared query pairs that meet a key, weighed and summed;
    query_cost : [shared, n, kv_heads, pairs], likewise of the keys a query meets.
    noise : for K and for Q, covariance of the error that rounded weights make in a pair, and second
        moments of what it is multiplied with, both before RoPE: xx, xy, yy [3, kv_heads, pairs].
    levels : of K's grid on one side of zero.
    """

    keys: Tensor
    queries: Tensor
    key_cost: Tensor
    query_cost: Tensor
    noise: tuple[tuple[Tensor, Tensor], ...]
    levels: int

    def loss(self, smoothing: Smoothing) -> Tensor:
        """Expected squared errors, by K head [kv_heads]."""
        square = smoothing.factor.square()
        key_step = smoothing.turned(self.keys, -1).abs().amax((-1, -2)) / self.levels
        query_step = smoothing.turned(self.queries, 1).abs().amax((-1, -2)) / 127
        by_key = key_step.square() * (self.key_cost * square).sum(-1)
        by_query = query_step.square() * (self.query_cost / square).sum(-1)
        loss = (by_key.sum(0) + by_query.sum((0, 1))) / 12
        for made, met in self.noise:
            loss = loss + (_diagonal(made, smoothing) * _diagonal(met, smoothing)).sum((-1, -2))
        return loss


def _diagonal(matrices: Tensor, smoothing: Smoothing) -> Tensor:
    """The diagonal of symmetric matrices (xx, xy, yy) turned by a smoothing's angles: [..., 2]."""
    c, s = smoothing.angle.cos(), smoothing.angle.sin()
    xx, xy, yy = matrices
    cross = 2 * c * s * xy
    return torch.stack((c * c * xx + s * s * yy - cross, s * s * xx + c * c * yy + cross), -1)


def _met_by_keys(weight: Tensor, q: Tensor, block: Block) -> Tensor:
    """Second moments of the queries that meet an error of K, in its frame before RoPE.

    Parameters
    ----------
    weight : [B, kv_heads, shared, S, T]. q : [B, kv_heads, shared, S, pairs, 2].

    Returns
    -------
    xx, xy, yy as float32 [3, kv_heads, pairs].
    """
    x, y = q.unbind(-1)
    moments = torch.stack(
        [torch.einsum("bkgst,bkgsp->ktp", weight, part) for part in (x * x, x * y, y * y)]
    )
    return _turned_back(moments, block).sum(2)


def _met_by_queries(chance: Tensor, mean: Tensor, k: Tensor, block: Block) -> Tensor:
    """Covariance of the keys that meet an error of Q, in its frame before RoPE.

    Parameters
    ----------
    chance : [B, kv_heads, shared, S, T]. mean : of the keys, [B, kv_heads, shared, S, pairs, 2].
    k : [B, kv_heads, T, pairs, 2].

    Returns
    -------
    xx, xy, yy as float32 [3, kv_heads, pairs].
    """
    (x, y), (mx, my) = k.unbind(-1), mean.unbind(-1)
    products = ((x * x, mx * mx), (x * y, mx * my), (y * y, my * my))
    moments = torch.stack(
        [
            (torch.einsum("bkgst,bktp->bkgsp", chance, raw) - offset).sum((0, 2))
            for raw, offset in products
        ]
    )
    return _turned_back(moments, block).sum(2)


def _turned_back(moments: Tensor, block: Block) -> Tensor:
    """Moments xx, xy, yy [3, kv_heads, positions, pairs] after RoPE, as they were before it."""
    if block.cos is None or block.sin is None:
        return moments
    xx, xy, yy = moments
    c, s = block.cos[: xx.shape[1]], -block.sin[: xx.shape[1]]
    return torch.stack(
        (
            c * c * xx - 2 * c * s * xy + s * s * yy,
            c * s * (xx - yy) + (c * c - s * s) * xy,
            s * s * xx + 2 * c * s * xy + c * c * yy,
        )
    )


def weight_noise(
    weight: Tensor, energy: Tensor, config: ModelConfig, bits: int, group: int
) -> Tensor:
    """Covariance of the output errors that rounding makes, by pair.

    Parameters
    ----------
    weight : of k, or of q (then averaged over the query heads of a K head), [rows, columns].
    energy : of each input [columns]: its mean square, or for K its variance (what all keys have in
        common changes no attention distribution). bits, group : what the matrix is rounded to.

    Returns
    -------
    xx, xy, yy as float32 [3, kv_heads, pairs].

    Notes
    -----
    All rows are taken to lose the same share, the one measured over the whole matrix.
    """
    made = round_plain(weight, grid_for(bits), group_for(weight.shape[1], group), None, energy)
    whole = (weight.square() @ energy).sum().clamp(min=1e-30)
    share = ((weight - made.weight()).square() @ energy).sum() / whole
    rows = (weight * energy.sqrt()).unflatten(0, (config.kv_heads, -1, config.head_dim // 2, 2))
    x, y = rows.unbind(-2)
    return share * torch.stack([part.sum((1, 3)) for part in (x * x, x * y, y * y)])


def _case(q: Tensor, k: Tensor, block: Block, noise: tuple[Tensor, ...] | None) -> _Case:
    """Collect keys, queries and costs of q [B, heads, T, hd] and k [B, kv_heads, T, hd]."""
    shared, tokens = q.shape[1] // k.shape[1], q.shape[2]
    q = q.unflatten(1, (-1, shared))
    score = q @ k[:, :, None].transpose(-1, -2) / math.sqrt(q.shape[-1])
    chance = torch.softmax(score.masked_fill(~block.seen(tokens), -torch.inf), dim=-1)
    weight = chance * (1 - chance)
    q, k = q.unflatten(-1, (-1, 2)), k.unflatten(-1, (-1, 2))
    key_cost = torch.einsum("bkgst,bkgsp->btkp", weight, q.square().sum(-1))
    # A query's error meets all keys alike, so only what sets them apart counts.
    mean = torch.einsum("bkgst,bktpa->bkgspa", chance, k)
    second = torch.einsum("bkgst,bktp->bkgsp", chance, k.square().sum(-1))
    query_cost = (second - mean.square().sum(-1)).clamp(min=0).permute(2, 0, 3, 1, 4)
    picked = torch.arange(0, q.shape[0] * tokens, max(1, q.shape[0] * tokens // SAMPLED_TOKENS))
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    if noise is not None:
        scale = len(picked) / (q.shape[0] * tokens)
        pairs = (
            (noise[0], _met_by_keys(weight, q, block) * scale),
            (noise[1] / shared, _met_by_queries(chance, mean, k, block) * scale),
        )
    return _Case(
        k.transpose(1, 2).flatten(0, 1)[picked],
        q.permute(2, 0, 3, 1, 4, 5).flatten(1, 2)[:, picked],
        key_cost.flatten(0, 1)[picked],
        query_cost.flatten(1, 2)[:, picked],
        pairs,
        127 if block.key_bits == 8 else 7,
    )


def _search(case: _Case, start: Smoothing, turn: bool) -> tuple[Smoothing, Tensor]:
    """Gradient descent from a start; the best smoothing of each K head on the way, and its loss."""
    with torch.enable_grad():
        angle = start.angle.clone().requires_grad_()
        logarithm = start.factor.log().requires_grad_()
        optimiser = torch.optim.Adam([angle, logarithm] if turn else [logarithm], lr=RATE)
        best, least = start, case.loss(start).detach()
        scale = 1 / least.clamp(min=1e-30)
        for step in range(STEPS):
            now = Smoothing(angle, logarithm.exp())
            loss = case.loss(now)
            better = (loss < least).detach()[:, None]
            best = Smoothing(
                torch.where(better, angle.detach(), best.angle),
                torch.where(better, logarithm.detach().exp(), best.factor),
            )
            least = torch.minimum(loss.detach(), least)
            optimiser.zero_grad()
            (loss * scale).sum().backward()
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            optimiser.step()
    return best, least


def _start(case: _Case) -> Smoothing:
    """Each pair turned so that its typical key has two equal channels."""
    x, y = case.keys.unbind(-1)
    cost = case.key_cost
    # Doubled angles, so that opposite keys agree; the typical axis is then half of the mean's.
    axis = torch.atan2((2 * x * y * cost).sum(0), ((x * x - y * y) * cost).sum(0)) / 2
    return Smoothing(math.pi / 4 - axis, torch.ones_like(axis))


def _normalised(smoothing: Smoothing) -> Smoothing:
    """Factors of each head with a geometric mean of 1 (a common factor changes no INT8 level)."""
    mean = smoothing.factor.log().mean(-1, keepdim=True).exp()
    return Smoothing(smoothing.angle, smoothing.factor / mean)


def smoothing_from_heads(
    q: Tensor, k: Tensor, block: Block, noise: tuple[Tensor, ...] | None = None,
    turn: bool = True,
) -> Smoothing:  # fmt: skip
    """The smoothing that serves the scores of calibration text best.

    Parameters
    ----------
    q : [B, heads, T, head_dim]; k : [B, kv_heads, T, head_dim]; both after RoPE, pairs adjacent.
    block : tells the KV cache's bits and the window.
    noise : `weight_noise` of k and of q, or None where their weights are not rounded.
    turn : whether pairs may be turned, or only scaled (which a matrix of codes can take up).
    """
    case = _case(q, k, block, noise)
    turned = _start(case)
    plain = Smoothing(torch.zeros_like(turned.angle), turned.factor)
    best, least = _search(case, plain, turn)
    if not turn:
        return _normalised(best)
    other, loss = _search(case, turned, turn)
    better = (loss < least)[:, None]
    return _normalised(
        Smoothing(
            torch.where(better, other.angle, best.angle),
            torch.where(better, other.factor, best.factor),
        )
    )


def smoothing_from_weights(layer: FoldedLayer, config: ModelConfig) -> Smoothing:
    """Smoothing without any text: factors that even out channels as unit inputs make them."""
    sizes = []
    for name in ("k", "q"):
        energy = (layer.weights[name] * layer.attn_norm).square().sum(1)
        if name in layer.biases:
            energy = energy + layer.biases[name].square()
        shaped = energy.view(config.kv_heads, -1, config.head_dim // 2, 2)
        sizes.append(shaped.sum((1, 3)).sqrt().clamp(min=1e-6))
    factor = (sizes[0] / sizes[1]).sqrt()
    return _normalised(Smoothing(torch.zeros_like(factor), factor))


def row_factors(smoothing: Smoothing, heads: int) -> dict[str, Tensor]:
    """What a smoothing without turns multiplies the rows of "k" and "q" with, float32 [rows]."""
    wide = smoothing.factor.repeat_interleave(2, dim=-1)
    shared = heads // len(wide)
    return {"k": (1 / wide).flatten(), "q": wide.repeat_interleave(shared, dim=0).flatten()}


def apply_smoothing(layer: FoldedLayer, smoothing: Smoothing) -> FoldedLayer:
    """The layer with the smoothing folded into Wk and Wq and their biases; the scores stay."""
    kv_heads, pairs = smoothing.angle.shape

    def fold(name: str, values: Tensor) -> Tensor:
        """Rows (or entries) of "k" or "q", turned and scaled."""
        wide = values.reshape(kv_heads, -1, pairs, 2, values.numel() // values.shape[0])
        moved = smoothing.turned(wide.permute(1, 4, 0, 2, 3), -1 if name == "k" else 1)
        return moved.permute(2, 0, 3, 4, 1).reshape(values.shape)

    names: tuple[str, ...] = ("k", "q")
    weights = {name: fold(name, layer.weights[name]) for name in names}
    biases = {name: fold(name, layer.biases[name]) for name in names if name in layer.biases}
    return layer.with_weights(weights, biases)
