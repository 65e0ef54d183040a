"""ST.values: V codes, transposed, to the places that `spec.kvcache` gives them."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring

from flightllm.hw.decode.layout import FormatWord
from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, ShareWalk
from flightllm.hw.memory.store_job import JobKind, StoreJob, walk_members
from flightllm.spec.formats import BLOCK
from flightllm.spec.timing import WRITES

__all__ = ["VALUE_OPERANDS", "ValueStore"]

_HEAD = data.StructLayout({"number": COUNT_BITS, "base": FACTOR_BITS, "codes": 32})
"""A head: its number, where its V lies, and where its codes of a channel lie in A."""

VALUE_OPERANDS = (
    "addr", "hstride", "heads", "rows", "fmt", "pos", "count", "codes", "codes1", "codes2",
)  # fmt: skip


class ValueStore(wiring.Component):
    """Walks tokens, heads that go together, channels, those heads, and pairs of rows; a pair is a
    transfer of one beat.

    `spec.timing.heads_together` heads give a channel their pairs one after the other, so that its
    memory turns its bus round once for all of them.
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
        self._token, self._column = Signal(COUNT_BITS), Signal(range(BLOCK))
        self._pair, self._codes, self._codes_at = Signal(COUNT_BITS), Signal(32), Signal(32)
        # Heads: this one, the visit's first, whose codes are the next channel's, and the one behind
        # those that go together.
        self._head, self._first, self._then = (
            Signal(_HEAD, name=name) for name in ("head", "first_head", "next_head")
        )
        self._mask = Signal(range(WRITES))
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
                begin = self._begin_token()
                m.d.sync += [
                    self._head.eq(begin), self._first.eq(begin), self._codes.eq(self._codes_at),
                ]  # fmt: skip
                m.d.comb += walk.restart.eq(1)
                m.next = "pairs"
                nothing = (self.heads == 0) | (self.rows == 0)
                with m.If((self._token == self.count[:COUNT_BITS]) | nothing):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            with m.State("pairs"):
                over = self._pairs(m)
                with m.If(walk.next & walk.last & over):
                    self._next_token(m)
                    m.next = "token"
        most = pairs + (extra != 0)
        bits = range((WRITES - 1).bit_length())
        m.d.sync += self._mask.eq(Cat(most <= WRITES >> (k + 1) for k in bits))
        return m

    def _begin_token(self) -> Value:
        """The first head of a token."""
        first = {"number": Const(0, COUNT_BITS), "base": self.addr[:FACTOR_BITS],
                 "codes": self._codes_at}  # fmt: skip
        return Cat(first[name] for name in _HEAD.members)

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

    def _pairs(self, m: Module) -> Value:
        """A pair of the channel's rows of a head a cycle; whether no head is left behind those that
        go together."""
        walk, job, step, last = self._walk, self.jobs.payload, Signal(), Signal()
        unit, inside = Signal(FACTOR_BITS), Signal(6)
        more = walk.channel < walk.extra
        left = walk.elements - (self._pair << 1)
        narrow, column = self._narrow, self._column
        m.d.comb += [
            unit.eq(
                self._head.base + Mux(more, self._place[1], self._place[0])
                + Mux(narrow, self._pair >> 1, self._pair)
            ),
            inside.eq(Mux(narrow, Cat(column, self._pair[0]), Cat(Const(0, 1), column))),
            last.eq(left <= 2),
            self.jobs.valid.eq(walk.elements != 0),
            step.eq(self.jobs.valid & self.jobs.ready),
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
        return self._walk_heads(m, step, last)

    def _walk_heads(self, m: Module, step: Signal, last: Signal) -> Value:
        """Behind the `last` pair of a head the next head's, of the last head that goes with others
        the next channel's, of the last channel those of the next heads."""
        walk, head, first = self._walk, self._head, self._first
        after, then, final = Signal(_HEAD), Signal(_HEAD), Signal()
        begun, behind = head.number == first.number, self._codes + 2
        there = Mux(begun, behind, first.codes)
        m.d.comb += [
            after.number.eq(head.number + 1),
            after.base.eq(head.base + self.hstride),
            after.codes.eq(head.codes + self.codes2),
            final.eq((after.number == self.heads[:COUNT_BITS])
                     | ((after.number & self._mask) == 0)),
            walk.next.eq((walk.elements == 0) | (step & last & final)),
            then.eq(Mux(walk.channel == 0, after, self._then)),
        ]  # fmt: skip
        with m.If(step):
            m.d.sync += [self._pair.eq(Mux(last, 0, self._pair + 1)), self._codes.eq(behind)]
            with m.If(begun):
                m.d.sync += first.codes.eq(behind)
            with m.If(last):
                m.d.sync += [head.eq(after), self._codes.eq(after.codes)]
            with m.If(last & final):
                m.d.sync += [head.eq(first), head.codes.eq(there), self._codes.eq(there),
                             self._then.eq(then)]  # fmt: skip
        with m.If(walk.next & walk.last):
            m.d.sync += [head.eq(then), first.eq(then), self._codes.eq(then.codes)]
        return then.number == self.heads[:COUNT_BITS]

    def _next_token(self, m: Module) -> None:
        m.d.sync += [
            self._token.eq(self._token + 1),
            self._column.eq(self._column + 1),
            self._codes_at.eq(self._codes_at + self.codes1),
        ]
        with m.If(self._column == BLOCK - 1):
            m.d.sync += [place.eq(place + size) for place, size in zip(self._place, self._block)]
