"""The compiled inner loop of the clip search: the error of every group at every scale tried.

Many groups go side by side, one in each lane, so that a group's sum has one order, column after
column, and vectors do the work. Numba compiles it without fast maths, so that no product and sum
are fused. Groups are split over torch's threads; a group's result does not depend on the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

__all__ = ["best_scales"]

F32 = NDArray[np.float32]
LANES = 64
"""Groups side by side. The kernel takes it as an argument: a constant would be unrolled, not
vectorised."""
WORTH_A_THREAD = 1 << 10
"""Groups that take about as long as handing them to another thread."""


@njit(cache=True, nogil=True, error_model="numpy")  # numpy: no test for a division by zero
def _search(values: Any, counts: Any, scales: Any, low: Any, high: Any, stride: Any, width: int,
            first: int, last: int, out: Any) -> None:  # fmt: skip
    group, tries = values.shape[1], scales.shape[1]
    lanes, importance = np.zeros((group, width), np.float32), np.zeros((group, width), np.float32)
    scale, error = np.ones(width, np.float32), np.zeros(width, np.float32)
    best, chosen = np.zeros(width, np.float32), np.ones(width, np.float32)
    for start in range(first, last, width):
        count = min(width, last - start)
        for lane in range(count):
            of = (start + lane) % counts.shape[0]
            for k in range(group):
                lanes[k, lane], importance[k, lane] = values[start + lane, k], counts[of, k]
        best[:], chosen[:] = np.inf, np.float32(1.0)
        for tried in range(tries):
            for lane in range(count):
                scale[lane] = scales[start + lane, tried]
            error[:] = np.float32(0.0)
            for k in range(group):
                value, weight = lanes[k], importance[k]
                if stride == np.float32(1.0):
                    for lane in range(width):
                        level = np.rint(value[lane] / scale[lane])
                        level = max(low, min(high, level))
                        miss = value[lane] - level * scale[lane]
                        error[lane] += miss * miss * weight[lane]
                else:
                    for lane in range(width):
                        code = np.rint((value[lane] / scale[lane] - low) / stride)
                        level = max(low, min(high, code * stride + low))
                        miss = value[lane] - level * scale[lane]
                        error[lane] += miss * miss * weight[lane]
            for lane in range(width):
                if error[lane] < best[lane]:
                    best[lane], chosen[lane] = error[lane], scale[lane]
        for lane in range(count):
            out[start + lane] = chosen[lane]


def best_scales(
    values: F32, counts: F32, scales: F32, low: int, high: int, stride: int = 1
) -> F32:  # fmt: skip
    """The scale of each group at which rounding loses least, the first of equals.

    Parameters
    ----------
    values : float32 [groups, group]. counts : weight of each squared error, float32 [n, group];
        row i % n is group i's.
    scales : those to try, float32 [groups, tries], positive.
    low, high, stride : the levels.

    Returns
    -------
    float32 [groups]; 1 where no error is below infinity.
    """
    groups = len(values)
    out = np.empty(groups, np.float32)
    threads = max(1, min(torch.get_num_threads(), groups // WORTH_A_THREAD))
    size = -(-groups // threads)
    grid = (np.float32(low), np.float32(high), np.float32(stride), LANES)

    def search(first: int) -> None:
        _search(values, counts, scales, *grid, first, min(first + size, groups), out)

    if threads == 1:
        search(0)
        return out
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(search, range(0, groups, size)))
    return out
