"""Tensors of arrays, with torch, which takes seconds, imported when the first is read.

What a file's header says is told without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["from_numpy"]


def from_numpy(values: NDArray[Any]) -> torch.Tensor:
    """The tensor of an array, which shares its memory."""
    import torch

    return torch.from_numpy(values)
