"""What an instruction wrote, read back from buffers and memory once it is done.

`READERS` names, for each instruction, the places that `docs/isa.md` says it writes, in the order in
which the functional simulator notes them, so that digests of both can be compared. Semaphores keep
everyone else away from those places until the instruction is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.core import Buffer
from flightllm.spec import kvcache
from flightllm.spec.errors import FlightError
from flightllm.spec.formats import ALIGN, BLOCK, MatrixFormat, Second, row_shares

__all__ = ["CoreView", "READERS", "digests"]

U8 = NDArray[np.uint8]
Written = Iterator[tuple[str, NDArray[np.generic]]]
Operands = Mapping[str, int]
Flags = frozenset[str]


@dataclass(frozen=True)
class CoreView:
    """One core's buffers and memory as they are now; the design writes the arrays in place.

    Members
    -------
    f, a : the buffers. memories : uint8 of each of the core's channels.
    """

    f: Buffer[np.uint32]
    a: Buffer[np.uint8]
    memories: Sequence[U8]

    def spread(self, address: int, count: int) -> NDArray[np.uint32]:
        """The spread vector of `count` words at a byte address."""
        parts = [
            memory[address : address + 4 * (b - a)].view(np.uint32)
            for memory, (a, b) in zip(self.memories, row_shares(count, len(self.memories)))
        ]
        return np.concatenate(parts)

    def bytes(self, base: int, channel: NDArray[np.intp], offset: NDArray[np.intp]) -> U8:
        """Single bytes of the channels, at `base` + offset."""
        channel, place = np.broadcast_arrays(channel, base + offset)
        out = np.zeros(place.shape, np.uint8)
        for number, memory in enumerate(self.memories):
            mine = channel == number
            out[mine] = memory[place[mine]]
        return out


def _nothing(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield from ()


def _load(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield "F", core.f.view(op["dst"], (op["count"], op["dstride"]), (op["n"], 1))


def _store(core: CoreView, flags: Flags, op: Operands) -> Written:
    rows = [
        core.spread((op["addr"] + i * op["mstride"]) * ALIGN, op["n"]) for i in range(op["count"])
    ]
    yield "memory", np.stack(rows) if rows else np.zeros(0, np.uint32)


def _keys(core: CoreView, flags: Flags, op: Operands) -> Written:
    form, channels = MatrixFormat.from_word(op["fmt"] & 0xFFFFFFFF), len(core.memories)
    positions = np.arange(op["pos"], op["pos"] + op["count"])
    codes, scales = list[U8](), (list[U8](), list[U8]())
    for head in range(op["heads"]):
        base, start = (op["addr"] + head * op["hstride"]) * ALIGN, op["start"] + head
        codes.append(core.bytes(base, *kvcache.key_strobes(form, positions, channels, start)))
        channel, *places = kvcache.key_scale_places(form, positions, channels, start)
        for kept, place in zip(scales, places):
            both = place[:, None] + np.arange(2)
            kept.append(core.bytes(base, channel[:, None], both))
    for parts in (codes, *scales):
        yield "memory", np.stack(parts, axis=1)


def _values(core: CoreView, flags: Flags, op: Operands) -> Written:
    form, channels = MatrixFormat.from_word(op["fmt"] & 0xFFFFFFFF), len(core.memories)
    positions = np.arange(op["pos"], op["pos"] + op["count"])
    places = kvcache.value_strobes(form, op["rows"], positions, channels)
    parts = [
        core.bytes((op["addr"] + head * op["hstride"]) * ALIGN, *places)
        for head in range(op["heads"])
    ]
    yield "memory", np.stack(parts, axis=1)


def _linear(core: CoreView, flags: Flags, op: Operands) -> Written:
    rows = op["rows"]
    if rows == 0:
        return
    tokens = (op.get("n1", 1), op.get("dst1", 0))
    yield "F", core.f.view(op["dst"], tokens, (op["n2"], op["dst2"]), (rows, 1))
    if MatrixFormat.from_word(op["fmt"] & 0xFFFFFFFF).second == Second.EMIT:
        yield "F", core.f.view(op["emit"], (rows, 1))


def _add(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield "F", core.f.view(op["dst"], (op["n1"], op["dst1"]), (op["n"], 1))


def _stat(core: CoreView, flags: Flags, op: Operands) -> Written:
    if "norm" in flags:
        yield "F", core.f.view(op["sums"], (op["n1"], op["sums1"]), (-(-op["n"] // 16), 1))
    yield "F", core.f.view(op["amax"], (op["n1"], op["amax1"]))


def _quant(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield "A", core.a.view(op["dst"], (op["n1"], op["dst1"]), (op["pad"], 1))
    yield "F", core.f.view(op["scale"], (op["n1"], 1))


def _headq(core: CoreView, flags: Flags, op: Operands) -> Written:
    heads, pad = op["heads"], op["pad"]
    yield "A", core.a.view(op["dst"], (op["n1"], op["dst1"]), (heads, pad), (pad, 1))
    yield "F", core.f.view(op["scale"], (op["n1"], op["scale1"]), (heads, 1))


def _softmax(core: CoreView, flags: Flags, op: Operands) -> Written:
    vectors = ((op["n1"], op["dst1"]), (op["n2"], op["dst2"]))
    yield "A", core.a.view(op["dst"], *vectors, (-(-op["length"] // BLOCK) * BLOCK, 1))
    yield "F", core.f.view(op["scale"], (op["n1"], op["scale1"]), (op["n2"], op["scale2"]))


def _act(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield "F", core.f.view(op["dst"], (op["n1"], op["dst1"]), (op["n"], 1))
    yield "F", core.f.view(op["amax"], (op["n1"], op["amax1"]))


def _pairs(core: CoreView, flags: Flags, op: Operands) -> Written:
    yield "F", core.f.view(op["dst"], (op["k"], 2), (2, 1))


def _slice(core: CoreView, flags: Flags, op: Operands) -> Written:
    axes = ((op["n1"], op["stride"]), (op["n"], 1))
    if "act" in flags:
        yield "A", core.a.view(op["addr"], *axes)
    else:
        yield "F", core.f.view(op["addr"], *axes)


READERS: dict[str, Callable[[CoreView, Flags, Operands], Written]] = {
    **{f"{unit}.nop": _nothing for unit in ("ld", "st", "mm", "mv", "misc", "sys")},
    "ld.stream": _nothing, "ld.vec": _load, "ld.gather": _load,
    "st.vec": _store, "st.keys": _keys, "st.values": _values,
    "mm.linear": _linear, "mv.linear": _linear,
    "misc.add": _add, "misc.stat": _stat, "misc.quant": _quant, "misc.headq": _headq,
    "misc.softmax": _softmax, "misc.act": _act, "misc.topk": _pairs, "misc.merge": _pairs,
    "sys.gather": _slice, "sys.barrier": _nothing, "sys.halt": _nothing,
}  # fmt: skip
"""What each instruction that goes to a unit writes; of a gather, one core's slice."""


def digests(core: CoreView, name: str,
            parts: Sequence[tuple[Flags, Operands]]) -> dict[str, str]:  # fmt: skip
    """Digest of each thing an instruction wrote, as a `TraceRecord` has it.

    Parameters
    ----------
    parts : flags and operands; of a gather those of every core, as all slices arrive in each.
    """
    totals: dict[str, Any] = {}
    for flags, operands in parts:
        try:
            for place, array in READERS[name](core, flags, operands):
                total = totals.setdefault(place, sha256())
                total.update(np.ascontiguousarray(array).tobytes())
        except (FlightError, IndexError, ValueError) as error:
            return {"unreadable": str(error)}
    return {place: total.hexdigest()[:16] for place, total in totals.items()}
