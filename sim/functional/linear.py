"""MM and MV: vectors times a matrix from the weight FIFO. Operands and meaning: spec/isa.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional import kernels
from flightllm.sim.functional.core import CoreState
from flightllm.sim.functional.matrices import Stream, format_of
from flightllm.spec import numerics
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import MatrixFormat, Second, Unpacked

__all__ = ["mm_linear", "mv_linear"]

Flags = frozenset[str]
F32 = NDArray[np.float32]
TABLE_WORDS = 4


def mm_linear(core: CoreState, flags: Flags, src: int, src1: int, src2: int, scale: int,
              scale1: int, scale2: int, dst: int, dst1: int, dst2: int, add: int, add1: int,
              n1: int, n2: int, rows: int, kgroups: int, fmt: int, first: int, start: int,
              emit: int, table: int) -> None:  # fmt: skip
    """Several tokens times a matrix."""
    addend = core.f.view(add, (n1, add1), (1, 0), (rows, 1)) if "add" in flags else None
    _linear(
        core, (src, src1, src2), (scale, scale1, scale2), (dst, dst1, dst2), addend, n1, n2,
        (rows, kgroups, fmt, first, start), emit, table,
    )  # fmt: skip


def mv_linear(core: CoreState, flags: Flags, src: int, src2: int, scale: int, scale2: int, dst: int,
              dst2: int, add: int, n2: int, rows: int, kgroups: int, fmt: int, first: int,
              start: int, emit: int, table: int) -> None:  # fmt: skip
    """One token, or the query heads that share a KV head, times a matrix."""
    if n2 > core.mv_vectors:
        raise VerifyError(f"n2: {n2} vectors, the unit takes {core.mv_vectors}")
    addend = core.f.view(add, (1, 0), (1, 0), (rows, 1)) if "add" in flags else None
    _linear(
        core, (src, 0, src2), (scale, 0, scale2), (dst, 0, dst2), addend, 1, n2,
        (rows, kgroups, fmt, first, start), emit, table,
    )  # fmt: skip


def _linear(core: CoreState, src: Sequence[int], scale: Sequence[int], dst: Sequence[int],
            addend: F32 | None, n1: int, n2: int, wanted: tuple[int, int, int, int, int],
            emit: int, table: int) -> None:  # fmt: skip
    """Pop the matrix, multiply, write. `src`, `scale`, `dst`: address, stride 1, stride 2."""
    rows, kgroups, word, _, _ = wanted
    fmt = format_of(word)
    stream = _pop(core, wanted)
    if rows == 0:
        return
    matrix = core.matrices.get(stream, _table(core, table) if fmt.table else None)
    columns = kgroups * fmt.group
    x = core.a.view(src[0], (n1, src[1]), (n2, src[2]), (columns, 1)).reshape(-1, columns)
    factor = core.f.view(scale[0], (n1, scale[1]), (n2, scale[2]))
    out = core.f.view(dst[0], (n1, dst[1]), (n2, dst[2]), (rows, 1))
    y = _sums(fmt, x, matrix).reshape(n1, n2, rows)
    out[:] = numerics.linear(y, factor, addend)
    core.note("F", out)
    if fmt.second == Second.EMIT and matrix.second is not None:
        values = core.f.view(emit, (rows, 1))
        values[:] = matrix.second[:, 0]
        core.note("F", values)


def _pop(core: CoreState, wanted: tuple[int, ...]) -> Stream:
    """The matrix at the head of the FIFO, which must be the one that is wanted."""
    stream = core.pop()
    found = (stream.rows, stream.kgroups, stream.word, stream.first, stream.start)
    if found != wanted:
        names = ("rows", "kgroups", "fmt", "first", "start")
        name, have, want = next(t for t in zip(names, found, wanted) if t[1] != t[2])
        raise VerifyError(f"{name}: {want}, but the matrix in the weight FIFO has {have}")
    return stream


def _table(core: CoreState, address: int) -> list[int]:
    """The 16 levels of a code table, four in each parameter word, the first in its low byte."""
    if not 0 <= address <= len(core.params) - TABLE_WORDS:
        raise VerifyError(f"table: parameter {address} of {len(core.params)} begins no code table")
    words = core.params[address : address + TABLE_WORDS]
    levels: list[int] = words.astype("<u4").view(np.int8).tolist()
    return levels


def _sums(fmt: MatrixFormat, x: NDArray[np.int8], matrix: Unpacked) -> F32:
    """Accumulated sums [vectors, rows], before the vectors' scales."""
    if matrix.scales is None:
        return numerics.int_to_float(kernels.int_sums(x, matrix.levels))
    minima = matrix.second if fmt.second == Second.MINIMUM else None
    return kernels.accumulate(x, matrix.levels, matrix.scales, fmt.group, minima, matrix.kept)
