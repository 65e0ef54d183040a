"""LD and ST: memory to FIFO and F, F and A to memory. Operands and meaning: spec/isa.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.core import CoreState
from flightllm.sim.functional.matrices import Stream
from flightllm.spec import kvcache
from flightllm.spec.errors import VerifyError
from flightllm.spec.formats import ALIGN, BLOCK, MatrixFormat, block_bytes, chunk_bytes, row_shares
from flightllm.spec.numerics import to_fp16

__all__ = [
    "ld_gather", "ld_stream", "ld_vec", "st_keys", "st_values", "st_vec",
]  # fmt: skip

Flags = frozenset[str]


def ld_stream(core: CoreState, flags: Flags, addr: int, rows: int, kgroups: int, fmt: int,
              first: int, start: int) -> None:  # fmt: skip
    """Push a matrix into the weight FIFO."""
    core.push(Stream.read(core.memory, addr * ALIGN, rows, kgroups, fmt, first, start))


def _row(core: CoreState, flags: Flags, address: int, n: int) -> NDArray[np.generic]:
    kind = np.float16 if "half" in flags else np.float32
    return core.memory.read_spread(address * ALIGN, n, kind)


def ld_vec(core: CoreState, flags: Flags, addr: int, dst: int, n: int, count: int, mstride: int,
           dstride: int) -> None:  # fmt: skip
    """Load rows of a table."""
    out = core.f.view(dst, (count, dstride), (n, 1))
    for i in range(count):
        out[i] = _row(core, flags, addr + i * mstride, n)
    core.note("F", out)


def ld_gather(core: CoreState, flags: Flags, addr: int, dst: int, n: int, count: int, mstride: int,
              dstride: int, index: int, istride: int) -> None:  # fmt: skip
    """Load the rows of a table that the numbers in F name."""
    numbers = core.words.view(index, (count, istride)).tolist()
    out = core.f.view(dst, (count, dstride), (n, 1))
    for i, number in enumerate(numbers):
        out[i] = _row(core, flags, addr + number * mstride, n)
    core.note("F", out)


def st_vec(core: CoreState, flags: Flags, addr: int, src: int, n: int, count: int, mstride: int,
           sstride: int) -> None:  # fmt: skip
    """Store rows of a table."""
    rows = core.f.view(src, (count, sstride), (n, 1))
    for i in range(count):
        core.memory.write_spread((addr + i * mstride) * ALIGN, rows[i])
    core.note("memory", rows)


def st_keys(core: CoreState, flags: Flags, addr: int, hstride: int, heads: int, fmt: int, pos: int,
            count: int, codes: int, codes1: int, kscale: int, vscale: int, scale1: int,
            start: int) -> None:  # fmt: skip
    """Append the K codes and both scales of `count` tokens."""
    form = MatrixFormat.from_word(fmt)
    if not form.cyclic or form.bits not in (4, 8):
        raise VerifyError(f"fmt: {form} is not a K format")
    positions = _positions(pos, count)
    levels = core.a.view(codes, (count, codes1), (heads, form.group), (form.group, 1))
    data = kvcache.key_bytes(form, levels)
    halves = [
        to_fp16(core.f.view(at, (count, scale1), (heads, 1))).view(np.uint8)
        for at in (kscale, vscale)
    ]
    halves = [part.reshape(count, heads, 2) for part in halves]
    size = (-(-(pos + count) // BLOCK) + core.channels - 1) // core.channels * chunk_bytes(form)
    for head in range(heads):
        base = (addr + head * hstride) * ALIGN
        channel, offset = kvcache.key_strobes(form, positions, core.channels, start + head)
        core.memory.write_bytes(base, size, channel, offset, data[:, head])
        places = kvcache.key_scale_places(form, positions, core.channels, start + head)
        for at, half in zip(places[1:], halves):
            for byte in (0, 1):
                core.memory.write_bytes(base, size, places[0], at + byte, half[:, head, byte])
    for written in (data, *halves):
        core.note("memory", written)


def st_values(core: CoreState, flags: Flags, addr: int, hstride: int, heads: int, rows: int,
              fmt: int, pos: int, count: int, codes: int, codes1: int,
              codes2: int) -> None:  # fmt: skip
    """Append the V codes of `count` tokens, transposed."""
    form = MatrixFormat.from_word(fmt)
    if not form.whole or form.bits not in (4, 8):
        raise VerifyError(f"fmt: {form} is not a V format")
    positions = _positions(pos, count)
    levels = core.a.view(codes, (count, codes1), (heads, codes2), (rows, 1))
    data = kvcache.value_bytes(form, levels)
    channel, offset = kvcache.value_strobes(form, rows, positions, core.channels)
    a, b = row_shares(rows, core.channels)[0]
    size = -(-(pos + count) // BLOCK) * block_bytes(form, b - a)
    for head in range(heads):
        base = (addr + head * hstride) * ALIGN
        core.memory.write_bytes(base, size, channel, offset, data[:, head])
    core.note("memory", data)


def _positions(pos: int, count: int) -> NDArray[np.intp]:
    if pos < 0 or count < 1:
        raise VerifyError(f"pos {pos}, count {count}: not a range of tokens")
    return np.arange(pos, pos + count)
