"""N:16 masks: which N of every aligned 16 columns a row, or a pair of rows, keeps.

Three ways to choose: by magnitude; by Wanda (arXiv 2306.11695), magnitude times the size of the
input; and by what a weight's loss costs once the others have made up for it (SparseGPT, arXiv
2301.00774, in `gptq.py`). In narrow matrices the last is done exactly, one weight after the other
(Optimal Brain Compression, arXiv 2208.11580).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BLOCK", "EXACT_COLUMNS", "Pruning", "choose_mask", "plain_mask", "remove_exactly"]

BLOCK = 16
EXACT_COLUMNS = 256
"""Columns of a matrix up to which weights are removed one after the other."""
CHUNK = 1 << 23
"""Elements of inverses that exact removal holds at a time."""


@dataclass(frozen=True)
class Pruning:
    """How matrices are pruned.

    Members
    -------
    kept : 2, 4 or 8 of every 16 columns; 16 is dense. method : "sparsegpt", "wanda" or "magnitude".
    private : rows choose alone; else rows 2i and 2i + 1 choose together, by the sum of their
        scores, and a last odd row chooses alone.
    """

    kept: int = 16
    method: str = "sparsegpt"
    private: bool = False

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.kept == BLOCK


def choose_mask(score: Tensor, kept: int, private: bool = False) -> Tensor:
    """Keep the `kept` highest scores of every 16 columns.

    Parameters
    ----------
    score : float32 [rows, columns], the loss of dropping each weight (its square for magnitude
        pruning). The first column must be aligned; a last block of fewer than 16 columns keeps
        min(kept, its width).
    kept, private : see `Pruning`.

    Returns
    -------
    bool [rows, columns]. Of equal scores the lower column is kept.
    """
    rows, columns = score.shape
    padded = torch.nn.functional.pad(score, (0, -columns % BLOCK), value=-1.0)
    if not private:
        padded = torch.nn.functional.pad(padded, (0, 0, 0, rows % 2)).unflatten(0, (-1, 2)).sum(1)
    blocks = padded.unflatten(1, (-1, BLOCK))
    order = blocks.argsort(dim=-1, descending=True, stable=True)[..., :kept]
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order, True).flatten(1)
    if not private:
        mask = mask.repeat_interleave(2, dim=0)
    return mask[:rows, :columns]


def plain_mask(weight: Tensor, pruning: Pruning, energy: Tensor | None) -> Tensor | None:
    """A mask chosen without making up for what is dropped; None when dense.

    Parameters
    ----------
    weight : float32 [rows, columns]. energy : mean square of each column's input [columns], or
        None: by magnitude then, as with that method.
    """
    if pruning.dense:
        return None
    score = weight.square()
    if energy is not None and pruning.method != "magnitude":
        score = score * energy
    return choose_mask(score, pruning.kept, pruning.private)


def remove_exactly(weight: Tensor, hessian: Tensor, pruning: Pruning) -> tuple[Tensor, Tensor]:
    """Remove the weight that costs least, let the others make up for it, and again.

    Parameters
    ----------
    weight : float32 [rows, columns]. hessian : [columns, columns], damped.

    Returns
    -------
    The weights that are left, the best there are under their mask; and the mask.
    """
    rows, columns = weight.shape
    shared = 1 if pruning.private else 2
    inverse = torch.linalg.inv(hessian.double())
    padded = torch.nn.functional.pad(weight.double(), (0, 0, 0, -rows % shared))
    units = padded.unflatten(0, (-1, shared))
    count = max(1, CHUNK // columns**2)
    done = [_remove(part.clone(), inverse, pruning.kept) for part in units.split(count)]
    left = torch.cat([part for part, _ in done]).flatten(0, 1)[:rows].float()
    mask = torch.cat([part for _, part in done]).repeat_interleave(shared, dim=0)[:rows]
    return left * mask, mask


def _remove(work: Tensor, inverse: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """`remove_exactly` for units [n, rows that share a mask, columns]."""
    count, columns = len(work), work.shape[-1]
    at = torch.arange(count)
    block = torch.arange(columns) // BLOCK
    width = torch.bincount(block)
    surplus = (width - width.clamp(max=kept)).expand(count, -1).clone()
    each = inverse.expand(count, -1, -1).clone()
    mask = torch.ones(count, columns, dtype=torch.bool)
    for _ in range(int(surplus[0].sum())):
        cost = work.square().sum(1) / each.diagonal(dim1=1, dim2=2)
        column = cost.masked_fill(~mask | (surplus[:, block] == 0), torch.inf).argmin(1)
        row = each[at, column]
        share = row / row[at, column][:, None]
        work -= work[at, :, column][:, :, None] * share[:, None]
        each -= row[:, :, None] * share[:, None]
        each[at, column], each[at, :, column] = 0.0, 0.0
        each[at, column, column] = 1.0
        mask[at, column] = False
        surplus[at, block[column]] -= 1
    return work, mask
