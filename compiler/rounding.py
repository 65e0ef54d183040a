"""Rounding weights to levels: the grids of each width, and fp16 scales found by clip search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flightllm.compiler.clip_kernel import best_scales

__all__ = ["Grid", "grid_for", "nearest", "search_scales", "spread"]

CHUNK = 1 << 22
"""Weights that the scale search works on at a time."""
SMALLEST_SCALE = 2.0**-24
LARGEST_SCALE = 65504.0


@dataclass(frozen=True)
class Grid:
    """The levels low, low + stride, ... high that a code can stand for.

    Members
    -------
    bits : width of the code. table : the levels in code order where codes index them, else None
        (the code is the level in two's complement).
    """

    bits: int
    low: int
    high: int
    stride: int = 1

    @property
    def table(self) -> tuple[int, ...] | None:
        return tuple(range(self.low, self.high + 1, self.stride)) if self.stride != 1 else None

    def clamp(self, ratio: Tensor) -> Tensor:
        """The level nearest to each weight-to-scale ratio, float32."""
        if self.stride == 1:
            return ratio.round().clamp_(self.low, self.high)
        code = ((ratio - self.low) / self.stride).round_()
        return (code * self.stride + self.low).clamp_(self.low, self.high)


def grid_for(bits: int) -> Grid:
    """The grid of a width.

    INT8 stays within +-127. 2-bit codes index the levels -3, -1, 1, 3: around zero they lose less
    than -2 .. 1 do. The others are two's complement, with the lowest level in use.
    """
    if bits == 8:
        return Grid(8, -127, 127)
    if bits == 2:
        return Grid(2, -3, 3, 2)
    return Grid(bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


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
