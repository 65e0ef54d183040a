"""Tensors of arrays. torch, which takes seconds to import, is not needed until one is read: what a
file's header says is told without it."""

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
