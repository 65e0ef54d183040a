"""A matrix as a checkpoint stores it: integer levels, scales, and what else belongs to a group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CodeKind", "Codes"]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class CodeKind:
    """What is known of a matrix' codes before they are read.

    Members
    -------
    bits, group, table : as in `Codes`; group 0 stands for whole rows.
    minima : groups have one. zeros : some zero point is not the middle of the codes.
    scattered : the columns of a group lie apart. wide : fp16 does not hold scales or minima.
    """

    bits: int
    group: int
    minima: bool = False
    zeros: bool = False
    table: tuple[int, ...] | None = None
    scattered: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Codes:
    """W[r, k] = levels[r, k] * scales[r, g(k)] + minima[r, g(k)], in float32, g(k) = k // group.

    Members
    -------
    levels : int8 or int16 [rows, columns]; zero points are subtracted already, tables looked up.
    scales : float32 [rows, groups].
    group : columns that share a scale; the last group may be shorter.
    bits : width of a code in the file.
    minima : float32 like `scales`, or None.
    zeros : int16 like `scales`: the file's code is levels + zeros, unsigned in `bits`; or None,
        then codes are signed, or (with minima) the levels themselves.
    table : the level of each code, or None.
    places : int64 [columns], g(k) of each column where groups are not consecutive (act-order).
    """

    levels: NDArray[np.int8] | NDArray[np.int16]
    scales: F32
    group: int
    bits: int = 8
    minima: F32 | None = None
    zeros: NDArray[np.int16] | None = None
    table: tuple[int, ...] | None = None
    places: NDArray[np.int64] | None = None

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value a group [rows, groups] as a value a column [rows, columns]."""
        if self.places is not None:
            return values[:, self.places]
        return np.repeat(values, self.group, axis=1)[:, : self.levels.shape[1]]

    def weights(self) -> F32:
        """What the codes stand for, float32 [rows, columns]."""
        out: F32 = self.levels.astype(np.float32)
        rows, columns = out.shape
        if self.places is None and columns == self.scales.shape[1] * self.group:
            groups = out.reshape(rows, -1, self.group)  # a view: nothing is spread
            groups *= self.scales[:, :, None]
            if self.minima is not None:
                groups += self.minima[:, :, None]
            return out
        out *= self.spread(self.scales)
        if self.minima is not None:
            out += self.spread(self.minima)
        return out

    def rows(self, index: slice | NDArray[np.int64]) -> Codes:
        """The codes of some rows, in the order of `index`."""
        return replace(
            self,
            levels=self.levels[index],
            scales=self.scales[index],
            minima=None if self.minima is None else self.minima[index],
            zeros=None if self.zeros is None else self.zeros[index],
        )
