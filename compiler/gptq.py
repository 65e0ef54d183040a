"""Error-compensated rounding and pruning (GPTQ, arXiv 2210.17323; SparseGPT, arXiv 2301.00774).

Columns are rounded one after the other; what a column loses is made up for by the columns still to
come, as far as the inputs' second moments (the Hessian of the squared output error) allow. Masks of
N:16 sparsity are chosen a group at a time on the weights as they then stand, or given. Without a
grid nothing is rounded, only pruned. `polish` goes over the
result again: scales by least squares, levels by coordinate descent; it never makes a row worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flightllm.compiler.grid import Grid
from flightllm.compiler.prune import Pruning, choose_mask
from flightllm.compiler.rounding import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    nearest,
    search_scales,
    spread,
)

__all__ = ["Factor", "Rounded", "compensate", "factorise", "polish", "round_plain", "row_errors"]

BLOCK = 128
DOUBLE_BELOW = 1024
"""Hessians of up to this many columns are factorised in float64."""


@dataclass(frozen=True)
class Rounded:
    """A matrix as levels, scales and mask.

    Members
    -------
    levels : float32 [rows, columns], whole numbers. scales : float32 [rows, groups], fp16 values.
    mask : bool [rows, columns] or None when dense.
    """

    levels: Tensor
    scales: Tensor
    group: int
    mask: Tensor | None = None

    def weight(self) -> Tensor:
        """What it stands for, float32 [rows, columns]."""
        return self.levels * spread(self.scales, self.group, self.levels.shape[1])


@dataclass(frozen=True)
class Factor:
    """A Hessian ready for compensation.

    Members
    -------
    hessian : float32 [columns, columns], damped. order : columns in the order they are rounded, or
    None for their own. upper : float32, upper Cholesky factor of the inverse, in that order.
    """

    hessian: Tensor
    upper: Tensor
    order: Tensor | None


def factorise(hessian: Tensor, damping: float = 0.01, reorder: bool = False) -> Factor:
    """Damp and factorise a Hessian.

    Parameters
    ----------
    hessian : [columns, columns], symmetric, positive semidefinite.
    damping : added to the diagonal, as a share of its mean; raised tenfold until it suffices.
    reorder : round the columns with the largest inputs first.
    """
    kind = torch.float64 if len(hessian) <= DOUBLE_BELOW else torch.float32
    matrix = hessian.to(kind)
    mean = float(matrix.diagonal().mean())
    eye = torch.eye(len(matrix), dtype=kind)
    order = matrix.diagonal().argsort(descending=True, stable=True) if reorder else None
    while True:
        # A layer whose inputs are all zero still gets a matrix that can be inverted.
        damped = matrix + eye * (damping * mean + 1e-12)
        turned = damped if order is None else damped[order][:, order]
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return Factor(damped.float(), upper.float(), order)
        damping *= 10


def round_plain(
    weight: Tensor, grid: Grid, group: int, mask: Tensor | None = None,
    importance: Tensor | None = None, clip: bool = True,
) -> Rounded:  # fmt: skip
    """Round each weight to the nearest level, without compensation.

    Parameters
    ----------
    weight : float32 [rows, columns]. mask : what is kept, bool like it, or None when dense.
    importance : mean square of each column's input, float32 [columns], or None.
    clip : see `search_scales`.
    """
    scales = search_scales(weight, grid, group, importance, mask, clip)
    levels = nearest(weight, spread(scales, group, weight.shape[1]), grid)
    return Rounded(levels if mask is None else levels * mask, scales, group, mask)


def compensate(
    weight: Tensor, factor: Factor, grid: Grid | None, group: int,
    pruning: Pruning | None = None, mask: Tensor | None = None,
) -> Rounded:  # fmt: skip
    """Round a matrix so that its outputs, not its weights, stay close.

    Parameters
    ----------
    weight : float32 [rows, columns]. factor : of the Hessian; choosing masks needs one in the
        columns' own order. grid : None keeps the kept weights' values, as levels of scale 1.
    pruning : how masks are chosen on the way, or None. mask : the mask where it is known.
    """
    rows, columns = weight.shape
    sweep = _Sweep(weight, factor, grid, group, mask)
    choosing = mask is None and pruning is not None and not pruning.dense
    if factor.order is not None:
        if choosing:
            raise ValueError("factor: masks are chosen in the columns' own order")
        sweep.fix_scales(factor.hessian.diagonal())
    if choosing:
        sweep.mask = torch.ones(rows, columns, dtype=torch.bool)
    for first in range(0, columns, BLOCK):
        last = min(columns, first + BLOCK)
        lost = torch.empty(rows, last - first)
        for column in range(first, last):
            if column % group == 0 and factor.order is None:
                sweep.open_group(column, pruning if choosing else None)
            lost[:, column - first] = sweep.round_column(column, last)
        sweep.work[:, last:] -= lost @ factor.upper[first:last, last:]
    return sweep.result()


class _Sweep:
    """The state of one pass over the columns, in the factor's order; the mask in the matrix'."""

    def __init__(
        self, weight: Tensor, factor: Factor, grid: Grid | None, group: int, mask: Tensor | None
    ) -> None:
        self.weight, self.factor, self.grid, self.group = weight, factor, grid, group
        self.mask = mask
        self.work = weight.clone() if factor.order is None else weight[:, factor.order]
        self.levels = torch.zeros_like(weight)
        self.scales = torch.ones(weight.shape[0], -(-weight.shape[1] // group))

    def fix_scales(self, importance: Tensor) -> None:
        """Find all scales beforehand."""
        if self.grid is not None:
            self.scales = search_scales(self.weight, self.grid, self.group, importance, self.mask)

    def open_group(self, start: int, pruning: Pruning | None) -> None:
        """Choose mask and scale of the group that starts at column `start`.

        Groups divide BLOCK, so all its columns already carry the errors so far.
        """
        stop = min(self.work.shape[1], start + self.group)
        part = self.work[:, start:stop]
        importance = self.factor.upper.diagonal()[start:stop].square().reciprocal()
        if self.mask is not None and pruning is not None:
            self.mask[:, start:stop] = choose_mask(
                part.square() * importance, pruning.kept, pruning.private
            )
        if self.grid is None:
            return
        chosen = None if self.mask is None else self.mask[:, start:stop]
        at = start // self.group
        self.scales[:, at : at + 1] = search_scales(part, self.grid, self.group, importance, chosen)

    def round_column(self, column: int, last: int) -> Tensor:
        """Round one column, spread its error up to column `last`; gives the scaled error [rows]."""
        order = self.factor.order
        own = column if order is None else int(order[column])
        weight, scale = self.work[:, column], self.scales[:, own // self.group]
        level = weight.clone() if self.grid is None else nearest(weight, scale, self.grid)
        if self.mask is not None:
            level *= self.mask[:, own]
        row = self.factor.upper[column]
        lost = (weight - level * scale) / row[column]
        self.work[:, column:last] -= lost[:, None] * row[column:last]
        self.levels[:, column] = level
        return lost

    def result(self) -> Rounded:
        """Levels in the columns' own order, with scales and mask."""
        levels = self.levels
        if self.factor.order is not None:
            levels = torch.empty_like(levels)
            levels[:, self.factor.order] = self.levels
        return Rounded(levels, self.scales, self.group, self.mask)


def row_errors(weight: Tensor, rounded: Rounded, hessian: Tensor) -> Tensor:
    """The squared output error that each row's rounding makes, float32 [rows]."""
    miss = weight - rounded.weight()
    return ((miss @ hessian) * miss).sum(1)


def polish(
    weight: Tensor, rounded: Rounded, hessian: Tensor, grid: Grid, rounds: int = 2
) -> Rounded:
    """Better scales and levels for the same Hessian and mask.

    Parameters
    ----------
    weight : float32 [rows, columns], the target. hessian : damped, as in `Factor`.
    rounds : how often scales, then levels are gone over.

    Returns
    -------
    A Rounded none of whose rows has a larger `row_errors`.
    """
    best, error = rounded, row_errors(weight, rounded, hessian)
    for _ in range(rounds):
        for step in (_refit_scales, _descend):
            tried = step(weight, best, hessian, grid)
            now = row_errors(weight, tried, hessian)
            better = (now < error)[:, None]
            error = torch.minimum(now, error)
            best = Rounded(
                torch.where(better, tried.levels, best.levels),
                torch.where(better, tried.scales, best.scales),
                best.group,
                best.mask,
            )
    return best


def _refit_scales(weight: Tensor, rounded: Rounded, hessian: Tensor, grid: Grid) -> Rounded:
    """All scales of a row by least squares for its levels."""
    rows, columns = weight.shape
    group, levels = rounded.group, rounded.levels
    groups = rounded.scales.shape[1]
    normal = torch.empty(rows, groups, groups)
    pad = (0, groups * group - columns)
    for at in range(groups):
        part = slice(at * group, min(columns, (at + 1) * group))
        product = (levels[:, part] @ hessian[part]) * levels
        normal[:, at] = torch.nn.functional.pad(product, pad).unflatten(1, (-1, group)).sum(-1)
    wanted = torch.nn.functional.pad((weight @ hessian) * levels, pad)
    wanted = wanted.unflatten(1, (-1, group)).sum(-1)
    ridge = normal.diagonal(dim1=1, dim2=2).mean(1) * 1e-4 + 1e-20
    normal = normal + ridge[:, None, None] * torch.eye(groups)
    wanted = wanted + ridge[:, None] * rounded.scales
    found, failed = torch.linalg.solve_ex(normal, wanted)
    usable = torch.isfinite(found) & (found > SMALLEST_SCALE) & (failed == 0)[:, None]
    found = torch.where(usable, found, rounded.scales).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    return Rounded(levels, found.half().float(), group, rounded.mask)


def _descend(weight: Tensor, rounded: Rounded, hessian: Tensor, grid: Grid) -> Rounded:
    """Each column in turn to its best levels, the others held."""
    columns = weight.shape[1]
    scales = spread(rounded.scales, rounded.group, columns)
    levels = rounded.levels.clone()
    pull = (weight - rounded.weight()) @ hessian
    diagonal = hessian.diagonal()
    for first in range(0, columns, BLOCK):
        last = min(columns, first + BLOCK)
        moved = torch.empty(weight.shape[0], last - first)
        for column in range(first, last):
            scale, old = scales[:, column], levels[:, column]
            new = nearest(old * scale + pull[:, column] / diagonal[column], scale, grid)
            if rounded.mask is not None:
                new *= rounded.mask[:, column]
            change = (new - old) * scale
            pull[:, first:last] -= change[:, None] * hessian[column, first:last]
            levels[:, column] = new
            moved[:, column - first] = change
        pull[:, last:] -= moved @ hessian[first:last, last:]
    return Rounded(levels, rounded.scales, rounded.group, rounded.mask)
