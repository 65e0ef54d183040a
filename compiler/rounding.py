"""Rounding weights to levels, with fp16 scales found by clip search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flightllm.compiler.clip_kernel import best_scales
from flightllm.compiler.grid import Grid

__all__ = ["nearest", "search_scales", "spread"]

CHUNK = 1 << 22
"""Weights that the scale search works on at a time."""
SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65504.0


def spread(per_group: Tensor, group: int, columns: int) -> Tensor:
    """A value a group [rows, groups] as a value a column [rows, columns]."""
    return per_group[:, :, None].expand(-1, -1, group).flatten(1)[:, :columns]


def nearest(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Levels of weights with scales of a shape that broadcasts to theirs; float32."""
    return grid.clamp(weight / scale)


def _ratios(grid: Grid) -> list[float]:
    """Scales to try, as shares of the one at which the largest weight is the highest level."""
    lowest, count = {8: (0.9, 6), 7: (0.85, 8), 6: (0.75, 12), 5: (0.6, 20)}.get(
        grid.bits, (0.3, 43)
    )
    return torch.linspace(1.0, lowest, count).tolist()


def _grouped(values: Tensor, group: int) -> Tensor:
    """[rows, columns] as [rows, groups, group], padded with zeros."""
    short = -values.shape[1] % group
    grouped: Tensor = torch.nn.functional.pad(values, (0, short)).unflatten(1, (-1, group))
    return grouped


def _search(weight: Tensor, importance: Tensor, grid: Grid, ratios: Sequence[float]) -> Tensor:
    """Scales [rows, groups] of weight [rows, groups, group]."""
    largest = weight.abs().amax(-1).reshape(-1, 1)
    shares = torch.tensor([ratio / grid.high for ratio in ratios])
    tried = (largest * shares).clamp(SMALLEST_SCALE, LARGEST_SCALE).half().float()
    values, counts = (part.contiguous().flatten(0, -2).numpy() for part in (weight, importance))
    found = best_scales(values, counts, tried.numpy(), grid.low, grid.high, grid.stride)
    return torch.from_numpy(found).view(weight.shape[:-1])


def search_scales(
    weight: Tensor, grid: Grid, group: int, importance: Tensor | None = None,
    mask: Tensor | None = None, clip: bool = True,
) -> Tensor:  # fmt: skip
    """The fp16 scale of each group that loses least, over clipped ranges.

    Parameters
    ----------
    weight : float32 [rows, columns].
    importance : weight of each column's squared error, float32 [columns]; all alike without.
    mask : bool [rows, columns], the weights that count; all without.
    clip : search; else the largest weight of a group is the highest level.

    Returns
    -------
    float32 [rows, ceil(columns / group)], positive values that fp16 can hold.
    """
    counts = torch.ones_like(weight[:1]) if importance is None else importance[None].to(weight)
    rows = max(1, CHUNK // weight.shape[1])
    ratios = _ratios(grid) if clip else [1.0]
    out = []
    for first in range(0, weight.shape[0], rows):
        part = weight[first : first + rows]
        weighed = counts
        if mask is not None:
            kept = mask[first : first + rows]
            part, weighed = part * kept, counts * kept
        out.append(_search(_grouped(part, group), _grouped(weighed, group), grid, ratios))
    return torch.cat(out)
