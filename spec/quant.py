"""Quantised tensors as every stage passes them on: levels, scales and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GROUPS", "QuantTensor", "WIDTHS"]

GROUPS = (32, 64, 128)
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class QuantTensor:
    """A weight matrix W [rows, columns] as INT8 levels with one fp16 scale (and minimum) a group.

    ``W[r, k] ~ levels[r, k] * scales[r, k // group] + minima[r, k // group]`` where kept, else 0.

    Parameters
    ----------
    levels : int8 [rows, columns], in [-127, 127]; what the array multiplies, after code table and
        zero point. Zero where `mask` is False.
    scales : float16 [rows, ceil(columns / group)], finite.
    bits : width of a stored code, 2 to 8.
    group : consecutive columns that share a scale; 32, 64 or 128. The last group may be partial.
    minima : float16 like `scales`, or None.
    zeros : int8 like `scales`, or None: the stored code is ``levels + zeros``, unsigned in `bits`.
    table : up to 16 int8 levels, for bits <= 4, or None: the stored code is an index into it.
        Without table and zeros the stored code is the level in two's complement.
    kept : N of N:16 sparsity (2, 4, 8), or 16 for dense.
    mask : bool [rows, columns] with exactly `kept` True in every aligned 16 columns, or None when
        dense. Rows 2i and 2i+1 share their mask unless `private`.
    private : each row has a mask of its own.
    """

    levels: NDArray[np.int8]
    scales: NDArray[np.float16]
    bits: int
    group: int
    minima: NDArray[np.float16] | None = None
    zeros: NDArray[np.int8] | None = None
    table: tuple[int, ...] | None = None
    kept: int = 16
    mask: NDArray[np.bool_] | None = None
    private: bool = False

    def __post_init__(self) -> None:
        rows, columns = self.levels.shape
        groups = -(-columns // self.group)
        if self.bits not in WIDTHS:
            raise ValueError(f"bits: {self.bits} is not one of {WIDTHS}")
        if self.group not in GROUPS:
            raise ValueError(f"group: {self.group} is not one of {GROUPS}")
        for name, part in (("scales", self.scales), ("minima", self.minima), ("zeros", self.zeros)):
            if part is not None and part.shape != (rows, groups):
                raise ValueError(f"{name}: shape {part.shape}, expected {(rows, groups)}")
        if (self.kept == 16) != (self.mask is None):
            raise ValueError("mask: a sparse tensor needs one and a dense tensor has none")
        if self.zeros is not None and (self.minima is not None or self.table is not None):
            raise ValueError("zeros: a tensor with zero points has neither minima nor a table")
        if self.table is not None and not 0 < len(self.table) <= 1 << min(self.bits, 4):
            raise ValueError(f"table: {len(self.table)} levels do not fit {self.bits} bits")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        rows, columns = self.levels.shape
        return rows, columns

    def dequantised(self) -> NDArray[np.float32]:
        """The weights this tensor stands for, float32 [rows, columns] (for errors and reports)."""
        out = self.levels.astype(np.float32)
        self._by_group(np.multiply, out, self.scales)
        if self.minima is not None:
            if self.mask is None:
                self._by_group(np.add, out, self.minima)
            else:
                minima = self.mask.astype(np.float32)
                self._by_group(np.multiply, minima, self.minima)
                out += minima
        return out

    def _by_group(self, ufunc: np.ufunc, out: NDArray[np.float32], values: NDArray[np.float16]
                  ) -> None:  # fmt: skip
        """Combine each group of `out` with its value, in place."""
        whole = out.shape[1] // self.group
        wide = values.astype(np.float32)[:, :, None]
        groups = out[:, : whole * self.group].reshape(len(out), whole, self.group)
        if whole * self.group == out.shape[1]:
            ufunc(groups, wide, out=groups)  # a view
            return
        out[:, : whole * self.group] = ufunc(groups, wide[:, :whole]).reshape(len(out), -1)
        rest = out[:, whole * self.group :]
        ufunc(rest, wide[:, -1], out=rest)
