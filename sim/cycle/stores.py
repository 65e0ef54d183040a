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
from flightllm.spec.timing import heads_together

__all__ = ["A", "F", "StoreJobs", "store_jobs"]

Ints = NDArray[np.int64]
F, A = range(2)
"""Buffers that a job reads."""


@dataclass
class StoreJobs:
    """Transfers in order, each a walk over reads of one buffer, one a cycle.

    Members
    -------
    leads : cycles of the walk before a transfer's first read. reads, ports : how many, of which
        buffer (`F` or `A`). parts : reads that make a beat.
    channels, addresses, sizes : where it goes, bytes and beats.
    behind : cycles from the last read to the end of the walk.
    """

    leads: Ints
    reads: Ints
    ports: Ints
    channels: Ints
    addresses: Ints
    sizes: Ints
    parts: int
    behind: int


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


def _made(rows: list[tuple[int, int, int, int, int, int]], parts: int, behind: int) -> StoreJobs:
    columns = np.ascontiguousarray(np.array(rows, np.int64).reshape(-1, 6).T)
    leads, reads, ports, channels, addresses, sizes = columns
    return StoreJobs(leads, reads, ports, channels, addresses, sizes, parts, behind)


def _vectors(v: Mapping[str, int], channels: int, beat: int, lanes: int) -> StoreJobs:
    width = min(lanes, beat // 4)
    rows, lead = [], 0
    shares = [b - a for a, b in row_shares(v["n"], channels)]
    for i in range(v["count"]):
        for c, share in enumerate(shares):
            if not share:
                lead += 1
                continue
            address = (v["addr"] + i * v["mstride"]) * ALIGN
            rows.append((lead, -(-share // width), F, c, address, -(-share * 4 // beat)))
            lead = 0
    return _made(rows, beat // 4 // width, lead + 1)


def _keys(v: Mapping[str, int], channels: int, beat: int) -> StoreJobs:
    fmt = format_of(v["fmt"])
    header, chunk = sum(section_bytes(fmt)[:3]), chunk_bytes(fmt)
    line = 2 * fmt.group * fmt.bits // 8  # bytes over which a token's codes are spread
    rows, lead = [], 0
    for token in range(v["count"]):
        position = v["pos"] + token
        block, row = divmod(position, BLOCK)
        lead += 1
        for head in range(v["heads"]):
            c = (block + v["start"] + head) % channels
            base = (v["addr"] + head * v["hstride"]) * ALIGN + block // channels * chunk
            for section in range(2):
                rows.append((lead, 1, F, c, base + section * ALIGN + 2 * row, 1))
                lead = 0
            begin = base + header + row // 2 * line
            beats = (begin + line - 1) // beat - begin // beat + 1
            rows.append((0, beats, A, c, begin, beats))
    return _made(rows, 1, lead + 2)


def _values(v: Mapping[str, int], channels: int, beat: int) -> StoreJobs:
    fmt: MatrixFormat = format_of(v["fmt"])
    shares = [b - a for a, b in row_shares(v["rows"], channels)]
    pairs = np.array([-(-share // 2) for share in shares])
    together = heads_together(int(pairs.max()))
    owner = np.repeat(np.arange(channels), pairs)
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    head, place = divmod(np.arange(v["heads"] * len(owner)), max(len(owner), 1))
    visit = head // together * channels + owner[place]  # of a channel, in order
    order = np.argsort(visit, kind="stable")
    head, owner, inside = head[order], owner[place][order], inside[place][order]
    size = np.array([block_bytes(fmt, share) for share in shares], np.int64)
    step = 2 * BLOCK * fmt.bits // 8
    blocks = -(-v["heads"] // together)
    skipped = np.cumsum(np.tile(pairs == 0, blocks))  # an empty share: a cycle
    lead = np.diff(skipped[visit[order]], prepend=0)
    position = v["pos"] + np.arange(v["count"])[:, None]
    address = (
        (v["addr"] + head * v["hstride"]) * ALIGN
        + position // BLOCK * size[owner] + inside * step + position % BLOCK * fmt.bits // 4
    )  # fmt: skip
    left = int(skipped[-1]) - int(lead.sum())  # empty shares behind the last pair
    leads = np.broadcast_to(lead, address.shape).copy()
    leads[:, :1] += 1
    leads[1:, :1] += left
    ones = np.ones(address.size, np.int64)
    return StoreJobs(
        leads.ravel(), ones, np.full(address.size, A, np.int64),
        np.ascontiguousarray(np.broadcast_to(owner, address.shape).ravel()), address.ravel(), ones,
        1, left + 2,
    )  # fmt: skip
