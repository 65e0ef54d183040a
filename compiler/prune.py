"""N:16 masks: which N of every aligned 16 columns a row, or a pair of rows, keeps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BLOCK", "choose_mask"]

BLOCK = 16


def choose_mask(score: Tensor, kept: int, private: bool = False) -> Tensor:
    """Keep the `kept` highest scores of every 16 columns.

    Parameters
    ----------
    score : float32 [rows, columns], the loss of dropping each weight (its square for magnitude
        pruning). The first column must be aligned; a last block of fewer than 16 columns keeps
        min(kept, its width).
    kept : 2, 4 or 8.
    private : rows choose alone; else rows 2i and 2i + 1 choose together, by the sum of their
        scores, and a last odd row chooses alone.

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
