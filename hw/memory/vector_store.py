"""ST.vec: rows of F to spread vectors in memory."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring

from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, ShareWalk
from flightllm.hw.memory.store_job import JobKind, StoreJob, walk_members

__all__ = ["VECTOR_OPERANDS", "VectorStore"]

VECTOR_OPERANDS = ("addr", "src", "n", "count", "mstride", "sstride")


class VectorStore(wiring.Component):
    """Walks rows, channels and beats.

    Parameters
    ----------
    channels, beat_bytes : of the core. lanes : words of an access to F.

    Members
    -------
    See `walk_members`.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int) -> None:
        self._channels, self._beat, self._lanes = channels, beat_bytes, lanes
        job = StoreJob(channels, beat_bytes, lanes)
        super().__init__(walk_members(VECTOR_OPERANDS, channels, job))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.walk = walk = ShareWalk(self._channels)
        pairs, extra = Signal(COUNT_BITS), Signal.like(walk.extra)
        row, address = Signal(COUNT_BITS), Signal(FACTOR_BITS)
        row_at, at = Signal(32), Signal(32)
        m.d.comb += [walk.pairs.eq(pairs), walk.extra.eq(extra), walk.n.eq(self.n)]
        with m.FSM():
            with m.State("idle"), m.If(self.go):
                m.next = "share"
            with m.State("share"):
                m.d.comb += [
                    self.math.start.eq(1),
                    self.math.divide.eq(1),
                    self.math.b.eq((self.n + 1) >> 1),
                ]
                m.d.sync += [row.eq(0), address.eq(self.addr), row_at.eq(self.src), at.eq(self.src)]
                with m.If(self.math.done):
                    m.d.sync += [pairs.eq(self.math.quotient), extra.eq(self.math.remainder)]
                    m.next = "begin"
            with m.State("begin"):
                m.d.comb += walk.restart.eq(1)
                m.next = "rows"
                with m.If(self.count == 0):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("rows"):
                self._beats(m, walk, address, at)
                with m.If(walk.next & walk.last):
                    following = row_at + self.sstride
                    m.d.sync += [
                        row.eq(row + 1), address.eq(address + self.mstride),
                        row_at.eq(following), at.eq(following),
                    ]  # fmt: skip
                    with m.If(row + 1 == self.count[:COUNT_BITS]):
                        m.d.comb += self.done.eq(1)
                        m.next = "idle"
        return m

    def _beats(self, m: Module, walk: Any, address: Signal, at: Signal) -> None:
        """One read of the channel's share a cycle."""
        words = self._beat // 4
        width = min(self._lanes, words)
        parts = words // width
        job, step = self.jobs.payload, Signal()
        taken, left, last = Signal.like(walk.elements), Signal.like(walk.elements), Signal()
        part = Signal(range(max(parts, 2)))
        m.d.comb += [
            left.eq(walk.elements - taken),
            last.eq(left <= width),
            self.jobs.valid.eq(walk.elements != 0),
            step.eq(self.jobs.valid & self.jobs.ready),
            walk.next.eq((walk.elements == 0) | (step & last)),
            job.kind.eq(JobKind.WORDS),
            job.source.eq(at),
            job.count.eq(Mux(last, left, width)),
            job.channel.eq(walk.channel),
            job.begin.eq(taken == 0),
            job.address.eq(address << 2),
            job.beats.eq((walk.elements + words - 1) >> (words.bit_length() - 1)),
            job.part.eq(part),
            job.whole.eq(last | (part == parts - 1)),
        ]
        with m.If(step):
            m.d.sync += [
                taken.eq(Mux(last, 0, taken + width)),
                part.eq(Mux(job.whole, 0, part + 1)),
                at.eq(at + job.count),
            ]
