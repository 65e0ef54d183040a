"""A checkpoint's own codes as a QuantTensor, where the formats can hold them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flightllm.models.checkpoint import Codes
from flightllm.spec.quant import GROUPS, QuantTensor

__all__ = ["can_keep", "stored_matrix"]


def can_keep(codes: Codes | None) -> bool:
    """Whether codes fit: groups that are multiples of 32, INT8 levels within +-127."""
    return codes is not None and codes.group % GROUPS[0] == 0 and int(codes.levels.min()) >= -127


def stored_matrix(
    codes: Codes, order: NDArray[np.int64] | None = None, factor: NDArray[np.float32] | None = None
) -> QuantTensor:
    """The matrix of the codes, exact but for scales rounded to fp16.

    Parameters
    ----------
    codes : for which `can_keep` holds. order : rows in the order wanted, or None.
    factor : what each row (after ordering) is multiplied with, float32 [rows], or None.
    """
    group = max(g for g in GROUPS if codes.group % g == 0)
    levels, scales = codes.levels, np.repeat(codes.scales, codes.group // group, axis=1)
    if order is not None:
        levels, scales = levels[order], scales[order]
    if factor is not None:
        scales = scales * factor[:, None]
    groups = -(-levels.shape[1] // group)
    return QuantTensor(
        np.ascontiguousarray(levels), scales[:, :groups].astype(np.float16), 8, group
    )
