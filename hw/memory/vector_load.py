"""LD.vec and LD.gather: rows of spread vectors from memory into F."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.half import HalfToFloat
from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, Arithmetic, ShareWalk
from flightllm.hw.memory.buffers import READ_LATENCY, read_port, write_port

__all__ = ["ChannelPart", "VectorLoad"]

OPERANDS = ("addr", "dst", "n", "count", "mstride", "dstride", "index", "istride")


class ChannelPart(data.StructLayout):
    """A request to one channel.

    Members
    -------
    channel : its number. address : of the first byte, in units of 64 bytes. beats : length.
    """

    def __init__(self, channels: int) -> None:
        channel = range(max(channels, 2))
        super().__init__({
            "channel": Signal(channel).shape(), "address": FACTOR_BITS, "beats": FACTOR_BITS,
        })  # fmt: skip


class VectorLoad(wiring.Component):
    """Asks for rows ahead of writing them: one part walks rows and channels to send requests,
    another walks them again to take the beats and write F, `lanes` words a cycle at most.

    Parameters
    ----------
    channels, beat_bytes : of the core. lanes : words of an access to F.

    Members
    -------
    addr, dst, ... : In, operands, stable from `go` to `done`. half, gather : In, what to do.
    go : In, a pulse. sent : Out, from the last request on. done : Out, a pulse when the last write
        was accepted.
    requests : Out, stream of `ChannelPart`. beats : In, a stream a channel.
    f_read, f_write : Out, ports of F.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int) -> None:
        self._channels, self._beat, self._lanes = channels, beat_bytes, lanes
        super().__init__({
            **{name: In(32) for name in OPERANDS},
            "half": In(1), "gather": In(1), "go": In(1), "sent": Out(1), "done": Out(1),
            "requests": Out(stream.Signature(ChannelPart(channels))),
            "beats": In(stream.Signature(8 * beat_bytes)).array(channels),
            "f_read": Out(read_port(lanes)),
            "f_write": Out(write_port(lanes, 32)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.arithmetic = unit = Arithmetic(self._channels)
        m.submodules.asked = asked = ShareWalk(self._channels)
        m.submodules.written = written = ShareWalk(self._channels)
        pairs, extra = Signal(COUNT_BITS), Signal.like(unit.remainder)
        begin, asking, writing, full = Signal(), Signal(), Signal(), Signal()
        for walk in (asked, written):
            m.d.comb += [walk.pairs.eq(pairs), walk.extra.eq(extra), walk.n.eq(self.n),
                         walk.restart.eq(begin)]  # fmt: skip
        with m.FSM():
            with m.State("idle"), m.If(self.go):
                m.next = "share"
            with m.State("share"):
                m.d.comb += [unit.start.eq(1), unit.divide.eq(1), unit.b.eq((self.n + 1) >> 1)]
                with m.If(unit.done):
                    m.d.sync += [pairs.eq(unit.quotient), extra.eq(unit.remainder)]
                    m.next = "begin"
            with m.State("begin"):
                m.d.comb += begin.eq(self.count != 0)
                m.next = "wait"
            with m.State("wait"):
                m.d.comb += self.sent.eq(~asking)
                with m.If(~asking & ~writing & ~full):
                    m.d.comb += self.done.eq(1)
                    m.next = "idle"
        self._ask(m, unit, asked, begin, asking)
        self._write(m, written, begin, writing, full)
        return m

    def _ask(self, m: Module, unit: Any, walk: Any, begin: Signal, asking: Signal) -> None:
        """Sends a row's requests, for a gather after reading its number."""
        row, address, at = Signal(COUNT_BITS), Signal(FACTOR_BITS), Signal(32)
        number, waited = Signal(FACTOR_BITS), Signal(range(READ_LATENCY + 1))
        request, size = self.requests, (self._beat - 1).bit_length()
        length = walk.elements << Mux(self.half, 1, 2)
        m.d.comb += [
            self.f_read.addr.eq(at),
            self.f_read.count.eq(1),
            request.payload.channel.eq(walk.channel),
            request.payload.address.eq(address),
            request.payload.beats.eq((length + self._beat - 1) >> size),
        ]
        with m.FSM() as fsm:
            m.d.comb += asking.eq(~fsm.ongoing("idle"))
            with m.State("idle"):
                m.d.sync += [row.eq(0), address.eq(self.addr), at.eq(self.index)]
                with m.If(begin):
                    self._next_row(m)
            with m.State("number"):
                m.d.comb += self.f_read.valid.eq(1)
                m.d.sync += waited.eq(1)
                with m.If(self.f_read.ready):
                    m.d.sync += at.eq(at + self.istride)
                    m.next = "answer"
            with m.State("answer"):
                m.d.sync += [waited.eq(waited + 1), number.eq(self.f_read.data[0])]
                with m.If(waited == READ_LATENCY):
                    m.next = "scale"
            with m.State("scale"):
                m.d.comb += [unit.start.eq(1), unit.a.eq(number), unit.b.eq(self.mstride)]
                with m.If(unit.done):
                    m.d.sync += address.eq(self.addr + unit.product)
                    m.next = "ask"
            with m.State("ask"):
                m.d.comb += [
                    request.valid.eq(walk.elements != 0),
                    walk.next.eq(request.ready | ~request.valid),
                ]
                with m.If(walk.next & walk.last):
                    m.d.sync += [row.eq(row + 1), address.eq(address + self.mstride)]
                    with m.If(row + 1 == self.count[:COUNT_BITS]):
                        m.next = "idle"
                    with m.Else():
                        self._next_row(m)

    def _next_row(self, m: Module) -> None:
        with m.If(self.gather):
            m.next = "number"
        with m.Else():
            m.next = "ask"

    def _write(self, m: Module, walk: Any, begin: Signal, writing: Signal, full: Signal) -> None:
        """Takes beats, in parts of at most `lanes` words, and writes them to F."""
        wide = {1: min(self._lanes, self._beat // 2), 0: min(self._lanes, self._beat // 4)}
        parts = {half: self._beat // (2 if half else 4) // wide[half] for half in wide}
        row, taken, at, row_at = Signal(COUNT_BITS), Signal(COUNT_BITS + 1), Signal(32), Signal(32)
        part = Signal(range(max(*parts.values(), 2)))
        valid, left, step, last = Signal(), Signal(COUNT_BITS + 1), Signal(), Signal()
        width, count = Mux(self.half, wide[1], wide[0]), Signal(range(self._lanes + 1))
        beat = Signal(8 * self._beat)
        m.d.comb += [
            valid.eq(Array([port.valid for port in self.beats])[walk.channel]),
            beat.eq(Array([port.payload for port in self.beats])[walk.channel]),
            left.eq(walk.elements - taken),
            last.eq(left <= width),
            count.eq(Mux(last, left, width)),
            step.eq(writing & (walk.elements != 0) & valid & (~full | self.f_write.ready)),
            walk.next.eq(writing & ((walk.elements == 0) | (step & last))),
        ]
        whole = last | (part == Mux(self.half, parts[1], parts[0]) - 1)
        for channel, port in enumerate(self.beats):
            m.d.comb += port.ready.eq(step & whole & (walk.channel == channel))
        with m.If(step):
            m.d.sync += [
                part.eq(Mux(whole, 0, part + 1)),
                taken.eq(Mux(last, 0, taken + count)),
                at.eq(at + count),
            ]
        with m.If(walk.next & walk.last):
            following = row_at + self.dstride
            m.d.sync += [row.eq(row + 1), row_at.eq(following), at.eq(following)]
            with m.If(row + 1 == self.count[:COUNT_BITS]):
                m.d.sync += writing.eq(0)
        with m.If(begin):
            m.d.sync += [writing.eq(1), row.eq(0), row_at.eq(self.dst), at.eq(self.dst)]
        self._convert(m, beat, part, wide, step, full)
        with m.If(step):
            m.d.sync += [self.f_write.addr.eq(at), self.f_write.count.eq(count), full.eq(1)]
        with m.Elif(self.f_write.ready):
            m.d.sync += full.eq(0)
        m.d.comb += self.f_write.valid.eq(full)

    def _convert(self, m: Module, beat: Value, part: Value, wide: Any, step: Signal,
                 full: Signal) -> None:  # fmt: skip
        """One register stage: the part's words as they are, or its halves as float32."""
        words, kept = Signal(32 * wide[0]), Signal(32 * wide[0])
        halves, converted = Signal(16 * wide[1]), []
        m.d.comb += [
            words.eq(beat.word_select(part, len(words))),
            halves.eq(beat.word_select(part, len(halves))),
        ]
        for lane in range(wide[1]):
            m.submodules[f"widen{lane}"] = widen = HalfToFloat(latency=1)
            m.d.comb += [widen.en.eq(step), widen.i.eq(halves.word_select(lane, 16))]
            converted.append(widen.o.as_value())
        with m.If(step):
            m.d.sync += kept.eq(words)
        m.d.comb += self.f_write.data.as_value().eq(Mux(self.half, Cat(converted), kept))
