"""Fit a quantised matrix to calibration: target, candidates, and the best of each row.

The target is not the matrix itself but the one that, on the quantised stream's inputs, comes
closest to what the float model's residual stream wants: it makes up for what earlier matrices lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from flightllm.compiler.gptq import (
    Factor,
    Rounded,
    compensate,
    factorise,
    polish,
    round_plain,
    row_errors,
)
from flightllm.compiler.grid import Grid
from flightllm.compiler.prune import EXACT_COLUMNS, Pruning, plain_mask, remove_exactly
from flightllm.compiler.streams import Moments

__all__ = [
    "Prepared", "corrected_bias", "fit_matrix", "prune_matrix", "round_matrix", "target",
]  # fmt: skip

DAMPING = 0.01
CHOICE = 32
"""Columns whose masks are chosen together where nothing is rounded."""
TRY_ORDERS_BELOW = 1 << 24
"""Weights of a matrix up to which both column orders are tried; larger ones keep their own."""


@dataclass(frozen=True)
class Prepared:
    """Moments of an input, with the factors that all matrices reading it share.

    Members
    -------
    own : factor in the columns' own order. sorted : with the largest inputs first. Both are made
        when they are first asked for.
    """

    moments: Moments

    @cached_property
    def own(self) -> Factor:
        return factorise(self.moments.hessian, DAMPING)

    @cached_property
    def sorted(self) -> Factor:
        return factorise(self.moments.hessian, DAMPING, reorder=True)

    @property
    def energy(self) -> Tensor:
        """Mean square of each column's input, float32 [columns]."""
        return self.moments.hessian.diagonal().float()


def target(weight: Tensor, prepared: Prepared) -> Tensor:
    """The matrix to round: float32 [rows, columns].

    It minimises the squared difference of W h + (x - y) and W' g over calibration, h and g being
    the float and the quantised input, x and y the residual streams (where the matrix writes them).
    """
    moments, upper = prepared.moments, prepared.own.upper
    wanted = weight.to(moments.drift) @ moments.drift
    if moments.owed is not None:
        wanted = wanted + moments.owed
    inverse = upper.to(wanted).T @ upper.to(wanted)
    return weight + (wanted @ inverse).float()


def fit_matrix(
    weight: Tensor, prepared: Prepared, grid: Grid, group: int, pruning: Pruning | None = None
) -> Rounded:
    """Prune and round a matrix with compensation.

    Parameters
    ----------
    weight : float32 [rows, columns]. group : as for `compensate`.
    pruning : how; of "wanda" and "magnitude" the mask is chosen first, and what it drops is made
        up for with the rounding.
    """
    goal = target(weight, prepared)
    hessian = prepared.own.hessian
    if pruning is None or pruning.dense:
        made = _candidates(goal, prepared, grid, group, None)
    elif pruning.method != "sparsegpt":
        mask = plain_mask(weight, pruning, prepared.energy)
        made = _candidates(goal, prepared, grid, group, mask)
    elif weight.shape[1] <= EXACT_COLUMNS:
        left, mask = remove_exactly(goal, hessian, pruning)
        made = [
            compensate(left, prepared.own, grid, group, mask=mask),
            round_plain(left, grid, group, mask, hessian.diagonal()),
        ]
    else:
        made = [compensate(goal, prepared.own, grid, group, pruning)]
    return _best([polish(goal, one, hessian, grid) for one in made], goal, hessian)


def round_matrix(
    weight: Tensor, prepared: Prepared | None, method: str, grid: Grid, group: int,
    pruning: Pruning,
) -> Rounded:  # fmt: skip
    """Prune and round a matrix.

    Parameters
    ----------
    prepared : its input, or None without calibration. method : "gptq" or "nearest".
    """
    if prepared is None:
        return round_plain(weight, grid, group, plain_mask(weight, pruning, None))
    if method == "gptq":
        return fit_matrix(weight, prepared, grid, group, pruning)
    mask = None
    if not pruning.dense:
        weight, mask = prune_matrix(weight, prepared, pruning)
    return round_plain(weight, grid, group, mask, prepared.energy)


def prune_matrix(weight: Tensor, prepared: Prepared, pruning: Pruning) -> tuple[Tensor, Tensor]:
    """Prune a matrix without rounding it: float32 [rows, columns], and the mask."""
    if pruning.method != "sparsegpt":
        mask = plain_mask(weight, pruning, prepared.energy)
        assert mask is not None
        return weight * mask, mask
    if weight.shape[1] <= EXACT_COLUMNS:
        return remove_exactly(weight, prepared.own.hessian, pruning)
    made = compensate(weight, prepared.own, None, CHOICE, pruning)
    assert made.mask is not None
    return made.levels, made.mask


def _candidates(
    goal: Tensor, prepared: Prepared, grid: Grid, group: int, mask: Tensor | None
) -> list[Rounded]:
    """The matrix rounded in both column orders, or in its own alone if it is large."""
    factors = [prepared.own]
    if goal.numel() <= TRY_ORDERS_BELOW:
        factors.append(prepared.sorted)
    return [compensate(goal, factor, grid, group, mask=mask) for factor in factors]


def _best(made: list[Rounded], goal: Tensor, hessian: Tensor) -> Rounded:
    """The best of each row, where all have the same mask."""
    best = made[0]
    for other in made[1:]:
        better = row_errors(goal, other, hessian) < row_errors(goal, best, hessian)
        best = replace(
            best,
            levels=torch.where(better[:, None], other.levels, best.levels),
            scales=torch.where(better[:, None], other.scales, best.scales),
        )
    return best


def corrected_bias(
    bias: Tensor, weight: Tensor, rounded: Tensor, moments: Moments, owed: Tensor | None
) -> Tensor:
    """The bias that gives the float model's mean outputs.

    Parameters
    ----------
    bias : [rows]. weight, rounded : the matrix before and after, [rows, columns].
    owed : mean difference of the residual streams [rows] where the matrix writes them, or None.
    """
    kind = moments.mean.dtype
    moved = weight.to(kind) @ moments.float_mean - rounded.to(kind) @ moments.mean
    if owed is not None:
        moved = moved + owed.to(kind)
    return bias + moved.float()
