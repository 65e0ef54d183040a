"""Compiled kernels of the linear operation: what `spec.numerics.accumulate` states, at full speed.

A kernel works on tiles of 16 rows: for each group, 16 integer dot products, then one float32 step
for all 16 rows at once, so that the ordered sum over groups costs little beside the products. Numba
compiles it without fast maths, hence without fused multiply-adds or reordered sums. Rows are split
over the cores by threads of our own: kernels release the GIL, and Numba's threading layers, of
which none survives both a fork and a call from two threads, stay unused.

The machine code is cached on disk beside this file, or where NUMBA_CACHE_DIR says, if it can be;
NUMBA_NUM_THREADS limits the threads.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import config, float32, int8, int16, int32, int64, njit, types, void
from numpy.typing import NDArray

__all__ = ["accumulate", "int_sums"]

TILE = 16  # rows at a time, a constant to the compiler
WORTH_A_THREAD = 1 << 18  # products that take about as long as handing them to another thread
MAX_COLUMNS = (2**31 - 1) // 127**2  # whose products always sum to an int32

_SMALLEST = np.float32(2.0**-126)
_ZERO = np.float32(0.0)
_THREADS: int = vars(config)["NUMBA_NUM_THREADS"]  # an attribute that appears at run time only
_NO_MINIMA, _DENSE_MINIMA, _MASKED_MINIMA = 0, 1, 2


def _flush_one(x: Any) -> Any:
    return x if abs(x) >= _SMALLEST else x * _ZERO


_flush = njit(inline="always")(_flush_one)


def _dot_rows(weights: Any, g: int, activations: Any, group: int, sums: Any) -> None:
    for j in range(TILE):
        row = weights[j, g]
        total = np.int32(0)
        for k in range(group):
            total += np.int32(row[k]) * np.int32(activations[k])
        sums[j] = total


_dot = njit(inline="always")(_dot_rows)


def _dot_tile(weights: Any, g: int, activations: Any, sums: Any) -> None:
    """Write the integer products of group g of a tile [16, groups, group] to sums int32 [16]."""
    group = activations.shape[0]
    if group == 128:  # a constant lets the compiler unroll: a quarter faster
        _dot(weights, g, activations, 128, sums)
    elif group == 64:
        _dot(weights, g, activations, 64, sums)
    else:
        _dot(weights, g, activations, group, sums)


_dots = njit(inline="always")(_dot_tile)


def _accumulate_rows(
    levels: Any,
    scales: Any,
    minima: Any,
    mask: Any,
    mode: int,
    x: Any,
    sums: Any,
    first: int,
    last: int,
    out: Any,
) -> None:
    """Write acc of rows first .. last - 1 to out [vectors, rows].

    levels, mask: [rows, groups, group], 16 rows at least; scales, minima: [rows, groups]; x:
    [vectors, groups, group]; sums: int32 [vectors, groups], x summed. What `mode` has no use for
    is empty. A short last tile starts earlier and computes some rows a second time.
    """
    vectors, groups, _ = x.shape
    acc = np.empty((vectors, TILE), np.float32)
    isum, asum = np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    factor, offset = np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
    for start in range(first, last, TILE):
        row = min(start, levels.shape[0] - TILE)
        # Slices, so that the compiler sees indices that are never negative.
        tile, kept = levels[row : row + TILE], mask[row : row + TILE]
        scale, minimum = scales[row : row + TILE], minima[row : row + TILE]
        acc[:] = _ZERO
        for g in range(groups):
            for j in range(TILE):
                factor[j] = scale[j, g]
            if mode != _NO_MINIMA:
                for j in range(TILE):
                    offset[j] = minimum[j, g]
            for v in range(vectors):
                _dots(tile, g, x[v, g], isum)
                if mode == _NO_MINIMA:
                    for j in range(TILE):
                        term = _flush(np.float32(isum[j]) * factor[j])
                        acc[v, j] = _flush(acc[v, j] + term)
                    continue
                if mode == _DENSE_MINIMA:
                    asum[:] = sums[v, g]
                else:
                    _dots(kept, g, x[v, g], asum)
                for j in range(TILE):
                    term = _flush(np.float32(isum[j]) * factor[j])
                    term = _flush(term + _flush(np.float32(asum[j]) * offset[j]))
                    acc[v, j] = _flush(acc[v, j] + term)
        for v in range(vectors):
            for j in range(TILE):
                out[v, row + j] = acc[v, j]


def _sum_rows(levels: Any, x: Any, first: int, last: int, out: Any) -> None:
    """Write the integer sums of rows first .. last - 1 to out int32 [vectors, rows]."""
    vectors, columns = x.shape
    for row in range(first, last):
        weights = levels[row]
        for v in range(vectors):
            activations = x[v]
            total = np.int32(0)
            for k in range(columns):
                total += np.int32(weights[k]) * np.int32(activations[k])
            out[v, row] = total


def _input(kind: Any, dimensions: int) -> Any:
    """Type of a C-contiguous input, which may be read-only (memory-mapped)."""
    return types.Array(kind, dimensions, "C", readonly=True)


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile, or load from the cache on disk, one of the kernels above."""
    signatures = {
        _accumulate_rows: void(
            _input(int8, 3), _input(float32, 2), _input(float32, 2), _input(int8, 3), int64,
            _input(int16, 3), _input(int32, 2), int64, int64, float32[:, ::1],
        ),
        _sum_rows: void(_input(int8, 2), _input(int16, 2), int64, int64, int32[:, ::1]),
    }  # fmt: skip
    compiled: Callable[..., None]
    try:
        compiled = njit(signatures[function], nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to write the cache to
        compiled = njit(signatures[function], nogil=True)(function)
    return compiled


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="kernel")


if hasattr(os, "register_at_fork"):  # a forked child has no threads: it makes a pool of its own
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _over_rows(part: Callable[[int, int], None], rows: int, products: int) -> None:
    """Call ``part(first, last)`` over all rows, on as many threads as the work is worth."""
    parts = min(_THREADS, products // WORTH_A_THREAD)
    if parts <= 1:
        part(0, rows)
        return
    step = -(-rows // (parts * TILE)) * TILE
    others = [
        _pool().submit(part, first, min(first + step, rows)) for first in range(step, rows, step)
    ]
    part(0, min(step, rows))
    for other in others:
        other.result()


def _at_least_a_tile(array: NDArray[Any]) -> NDArray[Any]:
    missing = TILE - array.shape[0]
    return np.pad(array, ((0, missing), (0, 0))) if missing > 0 else array


_NO_MASK = np.empty((0, 0, 0), np.int8)
_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_SUMS = np.empty((0, 0), np.int32)


def accumulate(
    x: NDArray[np.int8],
    levels: NDArray[np.int8],
    scales: NDArray[np.float32],
    group: int,
    minima: NDArray[np.float32] | None = None,
    mask: NDArray[np.bool_] | NDArray[np.int8] | None = None,
) -> NDArray[np.float32]:
    """acc of the linear operation, bit for bit that of `spec.numerics.accumulate`.

    Arrays are best C-contiguous; others are copied.

    Parameters
    ----------
    x : int8 [vectors, K], K = groups * group: a partial last group is padded with zeros.
    levels : int8 [rows, K], 0 where not kept or padded.
    scales, minima : float32 [rows, groups].
    mask : bool or int8 [rows, K], 1 where a sparse matrix with minima keeps the weight; None when
        dense.

    Returns
    -------
    float32 [vectors, rows].

    Raises
    ------
    ValueError
        For shapes that do not fit one another.
    """
    (vectors, columns), rows = x.shape, levels.shape[0]
    groups = columns // group
    if levels.shape[1] != columns or scales.shape != (rows, groups) or groups * group != columns:
        raise ValueError(
            f"x {x.shape}, levels {levels.shape} and scales {scales.shape} do not fit groups of"
            f" {group}"
        )
    mode, sums, kept = _NO_MINIMA, _NO_SUMS, _NO_MASK
    by_group = x.astype(np.int16, order="C").reshape(vectors, groups, group)
    if minima is not None:
        if minima.shape != scales.shape or (mask is not None and mask.shape != levels.shape):
            raise ValueError(f"minima {minima.shape} or mask do not fit levels {levels.shape}")
        mode = _DENSE_MINIMA if mask is None else _MASKED_MINIMA
        sums = by_group.sum(-1, dtype=np.int32)
    if rows < TILE:
        levels, scales = _at_least_a_tile(levels), _at_least_a_tile(scales)
        minima = None if minima is None else _at_least_a_tile(minima)
        mask = None if mask is None else _at_least_a_tile(mask)
    if mode == _MASKED_MINIMA and mask is not None:
        kept = np.ascontiguousarray(mask).view(np.int8).reshape(-1, groups, group)
    out = np.empty((vectors, levels.shape[0]), np.float32)
    kernel = _compiled(_accumulate_rows)
    weights = np.ascontiguousarray(levels).reshape(-1, groups, group)
    factors = np.ascontiguousarray(scales)
    offsets = _NO_FLOATS if minima is None else np.ascontiguousarray(minima)

    def part(first: int, last: int) -> None:
        kernel(weights, factors, offsets, kept, mode, by_group, sums, first, last, out)

    _over_rows(part, out.shape[1], vectors * rows * columns)
    return out[:, :rows]


def int_sums(x: NDArray[np.int8], levels: NDArray[np.int8]) -> NDArray[np.int32]:
    """Exact sums over all columns, for the integer linear operation.

    Parameters
    ----------
    x : int8 [vectors, K], K at most 133144. levels : int8 [rows, K].

    Returns
    -------
    int32 [vectors, rows].

    Raises
    ------
    ValueError
        For shapes that do not fit one another, or more columns than an int32 sum allows.
    """
    (vectors, columns), rows = x.shape, levels.shape[0]
    if levels.shape[1] != columns or columns > MAX_COLUMNS:
        raise ValueError(
            f"x {x.shape} and levels {levels.shape} must have the same number of columns, at most"
            f" {MAX_COLUMNS}"
        )
    out = np.empty((vectors, rows), np.int32)
    kernel = _compiled(_sum_rows)
    weights, activations = np.ascontiguousarray(levels), x.astype(np.int16, order="C")

    def part(first: int, last: int) -> None:
        kernel(weights, activations, first, last, out)

    _over_rows(part, rows, vectors * rows * columns)
    return out
