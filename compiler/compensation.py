"""Fit a quantised matrix to calibration: target, candidates, and the best of each row.

The target is not the matrix itself but the one that, on the quantised stream's inputs, comes
closest to what the float model's residual stream wants: it makes up for what earlier matrices lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flightllm.compiler.gptq import Factor, Rounded, compensate, factorise, polish, row_errors
from flightllm.compiler.rounding import Grid
from flightllm.compiler.streams import Moments

__all__ = ["Prepared", "corrected_bias", "fit_matrix", "prepare", "target"]

DAMPING = 0.01
TRY_ORDERS_BELOW = 1 << 24
"""Weights of a matrix up to which both column orders are tried; larger ones keep their own."""


@dataclass(frozen=True)
class Prepared:
    """Moments of an input with the factors that all matrices reading it share.

    Members
    -------
    own : factor in the columns' own order. sorted : with the largest inputs first.
    """

    moments: Moments
    own: Factor
    sorted: Factor


def prepare(moments: Moments) -> Prepared:
    """Factorise an input's moments."""
    return Prepared(
        moments,
        factorise(moments.hessian, DAMPING),
        factorise(moments.hessian, DAMPING, reorder=True),
    )


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
    weight: Tensor, prepared: Prepared, grid: Grid, group: int, kept: int = 16,
    private: bool = False,
) -> Rounded:  # fmt: skip
    """Round (and prune) a matrix with compensation.

    Parameters
    ----------
    weight : float32 [rows, columns]. group, kept, private : as for `compensate`.
    """
    goal = target(weight, prepared)
    hessian = prepared.own.hessian
    factors = [prepared.own]
    if kept == 16 and weight.numel() <= TRY_ORDERS_BELOW:
        factors.append(prepared.sorted)
    best: Rounded | None = None
    for factor in factors:
        made = polish(goal, compensate(goal, factor, grid, group, kept, private), hessian, grid)
        if best is not None:
            better = row_errors(goal, made, hessian) < row_errors(goal, best, hessian)
            made = Rounded(
                torch.where(better[:, None], made.levels, best.levels),
                torch.where(better[:, None], made.scales, best.scales),
                group,
            )
        best = made
    assert best is not None
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
