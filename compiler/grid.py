"""The levels that codes of each width stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Grid", "grid_for"]


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
