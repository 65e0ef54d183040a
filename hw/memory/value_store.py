"""ST.values: V codes, transposed, to the places that `spec.kvcache` gives them."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring

from flightllm.hw.decode.layout import FormatWord
from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, ShareWalk
from flightllm.hw.memory.store_job import JobKind, StoreJob, walk_members
from flightllm.spec.formats import BLOCK

__all__ = ["VALUE_OPERANDS", "ValueStore"]

VALUE_OPERANDS = (
    "addr", "hstride", "heads", "rows", "fmt", "pos", "count", "codes", "codes1", "codes2",
)  # fmt: skip


class ValueStore(wiring.Component):
    """Walks tokens, channels, heads and pairs of rows; a pair is a transfer of one beat.

    All that a token gives a channel comes together: its memory turns its bus round once a token.
    A pair of rows takes 64 bytes of a block in 8 bits, two bytes a token, or 32 in 4 bits, one
    byte a token.

    Parameters
    ----------
    channels, beat_bytes : of the core. lanes : words of an access to F.

    Members
    -------
    See `walk_members`.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int) -> None:
        self._channels, self._beat = channels, beat_bytes
        job = StoreJob(channels, beat_bytes, lanes)
        super().__init__(walk_members(VALUE_OPERANDS, channels, job))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.walk = walk = ShareWalk(self._channels)
        word = data.View(FormatWord, self.fmt[: FormatWord.size])
        self._narrow, self._walk = word.bits == 4, walk
        self._token, self._head = Signal(COUNT_BITS), Signal(COUNT_BITS)
        self._column = Signal(range(BLOCK))
        self._base, self._pair = Signal(FACTOR_BITS), Signal(COUNT_BITS)
        self._codes_at, self._head_at, self._codes = Signal(32), Signal(32), Signal(32)
        self._share_at = Signal(32)  # head 0's codes of the next channel
        pairs, extra = Signal(COUNT_BITS), Signal.like(walk.extra)
        # A block's bytes and this block's place, in units of 64, without and with an extra pair.
        self._block = [Signal(COUNT_BITS, name=f"block{k}") for k in range(2)]
        self._place = [Signal(FACTOR_BITS, name=f"place{k}") for k in range(2)]
        m.d.comb += [walk.pairs.eq(pairs), walk.extra.eq(extra), walk.n.eq(self.rows)]
        for k, size in enumerate(self._block):
            m.d.comb += size.eq(Mux(self._narrow, (pairs + k + 1) >> 1, pairs + k))
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [
                    self._token.eq(0), self._column.eq(self.pos), self._codes_at.eq(self.codes),
                ]  # fmt: skip
                with m.If(self.go):
                    m.next = "share"
            self._set_up(m, pairs, extra)
            with m.State("token"):
                m.d.sync += [
                    self._head.eq(0), self._base.eq(self.addr), self._head_at.eq(self._codes_at),
                    self._codes.eq(self._codes_at),
                ]  # fmt: skip
                m.d.comb += walk.restart.eq(1)
                m.next = "pairs"
                with m.If((self._token == self.count[:COUNT_BITS]) | (self.heads == 0)):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("pairs"):
                self._pairs(m)
                with m.If(walk.next & walk.last):
                    self._next_token(m)
                    m.next = "token"
        return m

    def _set_up(self, m: Module, pairs: Signal, extra: Signal) -> None:
        math = self.math
        with m.State("share"):
            m.d.comb += [math.start.eq(1), math.divide.eq(1), math.b.eq((self.rows + 1) >> 1)]
            with m.If(math.done):
                m.d.sync += [pairs.eq(math.quotient), extra.eq(math.remainder)]
                m.next = "place0"
        for k, then in enumerate(("place1", "token")):
            with m.State(f"place{k}"):
                m.d.comb += [
                    math.start.eq(1), math.a.eq(self._block[k]),
                    math.b.eq(self.pos >> (BLOCK.bit_length() - 1)),
                ]  # fmt: skip
                with m.If(math.done):
                    m.d.sync += self._place[k].eq(math.product)
                    m.next = then

    def _pairs(self, m: Module) -> None:
        """A pair of the channel's rows of a head a cycle."""
        walk, job, step, last = self._walk, self.jobs.payload, Signal(), Signal()
        unit, inside, final = Signal(FACTOR_BITS), Signal(6), Signal()
        more = walk.channel < walk.extra
        left = walk.elements - (self._pair << 1)
        narrow, column = self._narrow, self._column
        m.d.comb += [
            unit.eq(
                self._base + Mux(more, self._place[1], self._place[0])
                + Mux(narrow, self._pair >> 1, self._pair)
            ),
            inside.eq(Mux(narrow, Cat(column, self._pair[0]), Cat(Const(0, 1), column))),
            last.eq(left <= 2),
            final.eq(self._head + 1 == self.heads[:COUNT_BITS]),
            self.jobs.valid.eq(walk.elements != 0),
            step.eq(self.jobs.valid & self.jobs.ready),
            walk.next.eq((walk.elements == 0) | (step & last & final)),
            job.kind.eq(JobKind.VALUES),
            job.source.eq(self._codes),
            job.channel.eq(walk.channel),
            job.begin.eq(1),
            job.address.eq((unit << 2) + (inside >> 4)),
            job.beats.eq(1),
            job.whole.eq(1),
            job.narrow.eq(narrow),
            job.place.eq(inside[: (self._beat - 1).bit_length()]),
            job.odd.eq(left != 1),
        ]  # fmt: skip
        with m.If(step):
            self._next_pair(m, last, final)

    def _next_pair(self, m: Module, last: Signal, final: Signal) -> None:
        """Behind the `last` of a head the next head's, of the `final` head the next channel's."""
        behind, following = self._codes + 2, self._head_at + self.codes2
        first = self._head == 0
        with m.If(first):
            m.d.sync += self._share_at.eq(behind)
        m.d.sync += [self._pair.eq(self._pair + 1), self._codes.eq(behind)]
        with m.If(last):
            m.d.sync += [
                self._pair.eq(0),
                self._head.eq(self._head + 1),
                self._base.eq(self._base + self.hstride),
                self._head_at.eq(following),
                self._codes.eq(following),
            ]
        with m.If(last & final):
            there = Mux(first, behind, self._share_at)
            m.d.sync += [
                self._head.eq(0), self._base.eq(self.addr), self._head_at.eq(there),
                self._codes.eq(there),
            ]  # fmt: skip

    def _next_token(self, m: Module) -> None:
        m.d.sync += [
            self._token.eq(self._token + 1),
            self._column.eq(self._column + 1),
            self._codes_at.eq(self._codes_at + self.codes1),
        ]
        with m.If(self._column == BLOCK - 1):
            m.d.sync += [place.eq(place + size) for place, size in zip(self._place, self._block)]
