"""What ST sends to memory: each store's beats, when and where, as `spec.kvcache` places them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.matrices import format_of
from flightllm.spec.formats import (
    ALIGN,
    BLOCK,
    MatrixFormat,
    block_bytes,
    chunk_bytes,
    row_shares,
    section_bytes,
)

__all__ = ["StoreJobs", "store_jobs"]


@dataclass
class StoreJobs:
    """Transfers in order.

    Members
    -------
    cycles : in which each one's last beat leaves, from the first job on. channels, addresses,
        sizes : where it goes, bytes and beats. length : cycles of the walk.
    """

    cycles: NDArray[np.float64]
    channels: NDArray[np.int64]
    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]
    length: int

    def shifted(self, by: float) -> StoreJobs:
        """The same, `by` cycles later."""
        return StoreJobs(self.cycles + by, self.channels, self.addresses, self.sizes, self.length)


def store_jobs(name: str, v: Mapping[str, int], channels: int, beat: int,
               lanes: int) -> StoreJobs:  # fmt: skip
    """The transfers of a store instruction.

    Parameters
    ----------
    name, v : of the instruction, operands by name. beat : bytes. lanes : words of an access to F.
    """
    if name == "st.vec":
        return _vectors(v, channels, beat, lanes)
    return _keys(v, channels, beat) if name == "st.keys" else _values(v, channels, beat)


def _made(rows: list[tuple[int, int, int, int]], length: int) -> StoreJobs:
    array = np.array(rows, np.int64).reshape(-1, 4)
    return StoreJobs(array[:, 0].astype(np.float64), array[:, 1], array[:, 2], array[:, 3], length)


def _vectors(v: Mapping[str, int], channels: int, beat: int, lanes: int) -> StoreJobs:
    width = min(lanes, beat // 4)
    rows, at = [], 0
    shares = [b - a for a, b in row_shares(v["n"], channels)]
    for i in range(v["count"]):
        for c, share in enumerate(shares):
            at += max(1, -(-share // width))
            if share:
                address = (v["addr"] + i * v["mstride"]) * ALIGN
                rows.append((at - 1, c, address, -(-share * 4 // beat)))
    return _made(rows, at)


def _keys(v: Mapping[str, int], channels: int, beat: int) -> StoreJobs:
    fmt = format_of(v["fmt"])
    header, chunk = sum(section_bytes(fmt)[:3]), chunk_bytes(fmt)
    line = 2 * fmt.group * fmt.bits // 8  # bytes over which a token's codes are spread
    rows, at = [], 0
    for token in range(v["count"]):
        position = v["pos"] + token
        block, row = divmod(position, BLOCK)
        at += 1
        for head in range(v["heads"]):
            c = (block + v["start"] + head) % channels
            base = (v["addr"] + head * v["hstride"]) * ALIGN + block // channels * chunk
            for section in range(2):
                rows.append((at, c, base + section * ALIGN + 2 * row, 1))
                at += 1
            begin = base + header + row // 2 * line
            beats = (begin + line - 1) // beat - begin // beat + 1
            at += beats
            rows.append((at - 1, c, begin, beats))
    return _made(rows, at + 1)


def _values(v: Mapping[str, int], channels: int, beat: int) -> StoreJobs:
    fmt: MatrixFormat = format_of(v["fmt"])
    shares = [b - a for a, b in row_shares(v["rows"], channels)]
    pairs = np.array([-(-share // 2) for share in shares])
    owner = np.repeat(np.arange(channels), pairs)
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    size = np.array([block_bytes(fmt, share) for share in shares], np.int64)
    step = 2 * BLOCK * fmt.bits // 8
    walk = np.arange(len(owner)) + np.repeat(np.cumsum(pairs == 0), pairs)  # an empty one: a cycle
    length = len(owner) + int((pairs == 0).sum())
    heads, tokens = v["heads"], v["count"]
    position = v["pos"] + np.arange(tokens)[:, None, None]
    head = np.arange(heads)[None, :, None]
    address = (
        (v["addr"] + head * v["hstride"]) * ALIGN
        + position // BLOCK * size[owner] + inside * step + position % BLOCK * fmt.bits // 4
    )  # fmt: skip
    cycles = np.arange(tokens)[:, None, None] * (heads * length + 1) + 1 + head * length + walk
    shape = np.broadcast_shapes(address.shape, cycles.shape)
    return StoreJobs(
        np.broadcast_to(cycles, shape).ravel().astype(np.float64),
        np.broadcast_to(owner, shape).ravel().astype(np.int64),
        np.broadcast_to(address, shape).ravel().astype(np.int64),
        np.ones(int(np.prod(shape)), np.int64), tokens * (heads * length + 1) + 1,
    )  # fmt: skip
