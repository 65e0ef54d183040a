"""ST.keys: K codes and scales to the places that `spec.kvcache` gives them."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring

from flightllm.hw.decode.layout import FormatWord
from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, ChunkSize
from flightllm.hw.memory.store_job import UNIT, JobKind, StoreJob, walk_members
from flightllm.spec.formats import BLOCK

__all__ = ["KEY_OPERANDS", "KeyStore"]

KEY_OPERANDS = (
    "addr", "hstride", "heads", "fmt", "pos", "count", "codes", "codes1", "kscale", "vscale",
    "scale1", "start",
)  # fmt: skip


class KeyStore(wiring.Component):
    """Walks tokens and heads: two scales, then the beats that the token's codes lie in.

    Two tokens share a line of codes, one in its even bytes, the other in its odd ones.

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
        super().__init__(walk_members(KEY_OPERANDS, channels, job))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.sizes = self._sizes = ChunkSize()
        word = data.View(FormatWord, self.fmt[: FormatWord.size])
        self._narrow, self._group = word.bits == 4, word.group
        channel = range(max(self._channels, 2))
        self._token, self._head = Signal(COUNT_BITS), Signal(COUNT_BITS)
        self._row = Signal(range(BLOCK))
        self._turn = Signal(channel)  # block modulo channels
        self._first, self._channel = Signal(channel), Signal(channel)  # of head 0, of this head
        self._slot, self._base = Signal(FACTOR_BITS), Signal(FACTOR_BITS)  # units of 64 bytes
        self._line, self._length = Signal(9), Signal(6)  # units of 16 bytes
        self._codes_at, self._codes = Signal(32), Signal(32)  # of the token, of its head
        self._scale_at = Signal(32)  # distance of the token's scales
        m.d.comb += [
            self._sizes.word.eq(self.fmt),
            self._length.eq(self._group << ~self._narrow),
        ]
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [
                    self._token.eq(0), self._row.eq(self.pos), self._codes_at.eq(self.codes),
                    self._scale_at.eq(0),
                ]  # fmt: skip
                with m.If(self.go):
                    m.next = "block"
            self._set_up(m)
            with m.State("token"):
                m.d.sync += [
                    self._head.eq(0), self._base.eq(self.addr), self._channel.eq(self._first),
                    self._codes.eq(self._codes_at),
                ]  # fmt: skip
                m.next = "kscale"
                with m.If((self._token == self.count[:COUNT_BITS]) | (self.heads == 0)):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
            self._scale(m, "kscale", self.kscale, 0, "vscale")
            self._scale(m, "vscale", self.vscale, 1, "codes")
            with m.State("codes"), m.If(self._line_beats(m)):
                self._next_head(m)
        return m

    def _set_up(self, m: Module) -> None:
        math = self.math
        with m.State("block"):
            block = self.pos >> (BLOCK.bit_length() - 1)
            m.d.comb += [math.start.eq(1), math.divide.eq(1), math.b.eq(block)]
            with m.If(math.done):
                m.d.sync += [self._slot.eq(math.quotient), self._turn.eq(math.remainder)]
                m.next = "slot"
        with m.State("slot"):
            m.d.comb += [math.start.eq(1), math.a.eq(self._slot), math.b.eq(self._sizes.chunk)]
            with m.If(math.done):
                m.d.sync += self._slot.eq(math.product)
                m.next = "line"
        with m.State("line"):
            m.d.comb += [math.start.eq(1), math.a.eq(self._length), math.b.eq(self._row >> 1)]
            with m.If(math.done):
                m.d.sync += self._line.eq(math.product)
                m.next = "first"
        with m.State("first"):
            m.d.comb += [
                math.start.eq(1), math.divide.eq(1),
                math.b.eq(self._turn + self.start[: COUNT_BITS - 1]),
            ]  # fmt: skip
            with m.If(math.done):
                m.d.sync += self._first.eq(math.remainder)
                m.next = "token"

    def _common(self, m: Module, kind: JobKind, address: Any, source: Any) -> None:
        job = self.jobs.payload
        m.d.comb += [
            self.jobs.valid.eq(1),
            job.kind.eq(kind),
            job.channel.eq(self._channel),
            job.address.eq(address),
            job.source.eq(source),
            job.count.eq(1),
            job.whole.eq(1),
            job.narrow.eq(self._narrow),
        ]

    def _scale(self, m: Module, state: str, base: Any, section: int, then: str) -> None:
        """A scale is a transfer of one beat."""
        job, inside = self.jobs.payload, self._row << 1
        with m.State(state):
            unit = (self._base + self._slot + section) << 2
            source = base + self._scale_at + self._head
            self._common(m, JobKind.SCALE, unit + (inside >> 4), source)
            m.d.comb += [
                job.begin.eq(1),
                job.beats.eq(1),
                job.place.eq(inside[: (self._beat - 1).bit_length()]),
            ]
            with m.If(self.jobs.ready):
                m.next = then

    def _line_beats(self, m: Module) -> Any:
        """The line of codes, a beat a cycle; high with the last."""
        units = self._beat // UNIT
        bits = units.bit_length() - 1
        job = self.jobs.payload
        done = Signal(6)  # units of the line
        address, offset, left = Signal(FACTOR_BITS + 2), Signal(max(bits, 1)), Signal(6)
        place, end, last = Signal(3), Signal(3), Signal()
        m.d.comb += [
            address.eq(((self._base + self._slot + self._sizes.header) << 2) + self._line),
            offset.eq(address[:bits]),
            left.eq(self._length - done),
            place.eq(Mux(done == 0, offset, 0)),
            last.eq(left <= units - place),
            end.eq(Mux(last, place + left, units)),
        ]
        codes = done << Mux(self._narrow, 4, 3)  # read so far; 16 bytes hold 8 codes, or 16
        self._common(m, JobKind.KEYS, address, self._codes + codes)
        m.d.comb += [
            job.begin.eq(done == 0),
            job.beats.eq((offset + self._length + units - 1) >> bits),
            job.place.eq(place),
            job.end.eq(end),
            job.odd.eq(self._row[0]),
        ]
        with m.If(self.jobs.ready):
            m.d.sync += done.eq(Mux(last, 0, done + (end - place)))
        return self.jobs.ready & last

    def _next_head(self, m: Module) -> None:
        last = self._channels - 1
        m.d.sync += [
            self._head.eq(self._head + 1),
            self._base.eq(self._base + self.hstride),
            self._channel.eq(Mux(self._channel == last, 0, self._channel + 1)),
            self._codes.eq(self._codes + (self._group << 4)),
        ]
        m.next = "kscale"
        with m.If(self._head + 1 == self.heads[:COUNT_BITS]):
            m.next = "token"
            m.d.sync += [
                self._token.eq(self._token + 1),
                self._row.eq(self._row + 1),
                self._codes_at.eq(self._codes_at + self.codes1),
                self._scale_at.eq(self._scale_at + self.scale1),
            ]
            with m.If(self._row == BLOCK - 1):  # a new block: the next channel, or slot
                m.d.sync += [
                    self._line.eq(0),
                    self._first.eq(Mux(self._first == last, 0, self._first + 1)),
                    self._turn.eq(Mux(self._turn == last, 0, self._turn + 1)),
                ]
                with m.If(self._turn == last):
                    m.d.sync += self._slot.eq(self._slot + self._sizes.chunk)
            with m.Elif(self._row[0]):
                m.d.sync += self._line.eq(self._line + self._length)
