"""How much of a matrix each channel streams, and from where: `spec.formats.stream_bytes` in RTL."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import FormatWord
from flightllm.hw.memory.arithmetic import COUNT_BITS, FACTOR_BITS, Arithmetic, ChunkSize
from flightllm.spec.formats import BLOCK

__all__ = ["StreamPlan"]


class StreamPlan(wiring.Component):
    """Plans one LD.stream, then shows the channels one after the other.

    Channels differ in two ways only: whether they have one more of what is shared (`extra`), and,
    cyclic, whether their first block lies one slot further. So two sizes and two offsets are
    computed, and each channel picks.

    Parameters
    ----------
    channels : of the core.

    Members
    -------
    rows, kgroups, fmt, first, start : In, operands, stable from `go` to the last channel.
    go : In, a pulse. planned : Out, the channel's part is shown. next : In, to the next channel.
    channel : Out, its number. offset, size : Out, its part behind the matrix's address and its
        length, in units of 64 bytes. last : Out, it is the last channel; `next` then ends the plan.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        operands = {name: In(32) for name in ("rows", "kgroups", "fmt", "first", "start")}
        super().__init__({
            **operands, "go": In(1), "next": In(1), "planned": Out(1),
            "channel": Out(range(max(channels, 2))), "last": Out(1),
            "offset": Out(FACTOR_BITS), "size": Out(FACTOR_BITS),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.arithmetic = self._unit = Arithmetic(self._channels)
        m.submodules.sizes = sizes = ChunkSize()
        self._word = data.View(FormatWord, self.fmt[: FormatWord.size])
        self._chunk, self._share = Signal(8), Signal(COUNT_BITS)
        self._low, self._high = Signal(FACTOR_BITS), Signal(FACTOR_BITS)
        extra = Signal(range(max(self._channels, 2)))
        m.d.comb += sizes.word.eq(self.fmt)
        m.d.sync += self._chunk.eq(sizes.chunk)
        part = {
            name: Signal(FACTOR_BITS, name=name)
            for name in ("offset_low", "offset_high", "size_low", "size_high")
        }
        place, turn = Signal.like(extra), Signal.like(extra)
        with m.FSM():
            with m.State("idle"):
                m.d.sync += [part["offset_low"].eq(0), part["offset_high"].eq(0)]
                with m.If(self.go):
                    with m.If(self._word.cyclic):
                        m.next = "first"
                    with m.Else():
                        m.next = "share"
            with m.State("share"), self._divide(m, (self.rows + 1) >> 1):
                m.d.sync += [self._share.eq(self._unit.quotient),
                             extra.eq(self._unit.remainder)]  # fmt: skip
                with m.If(self._word.whole):
                    m.next = "block"
                with m.Else():
                    m.next = "groups"
            self._plan_cyclic(m, part, extra, place, turn)
            self._plan_blocked(m, part)
            self._plan_whole(m, part)
            with m.State("planned"):
                m.d.comb += self.planned.eq(1)
                with m.If(self.next & self.last):
                    m.next = "idle"
        self._choose(m, part, extra, place, turn)
        return m

    def _divide(self, m: Module, x: Value) -> Any:
        """Divide by the channels; a context in which the quotient is there."""
        m.d.comb += [self._unit.start.eq(1), self._unit.divide.eq(1), self._unit.b.eq(x)]
        return m.If(self._unit.done)

    def _multiply(self, m: Module, state: str, a: Any, b: Any, into: Signal, then: str) -> None:
        with m.State(state):
            m.d.comb += [self._unit.start.eq(1), self._unit.a.eq(a), self._unit.b.eq(b)]
            with m.If(self._unit.done):
                m.d.sync += into.eq(self._unit.product)
                m.next = then

    def _plan_cyclic(self, m: Module, part: Any, extra: Any, place: Any, turn: Any) -> None:
        unit, slot = self._unit, Signal(COUNT_BITS)
        with m.State("first"), self._divide(m, self.first):
            m.d.sync += [slot.eq(unit.quotient), place.eq(unit.remainder)]
            m.next = "blocks"
        blocks = (self.rows + BLOCK - 1) >> (BLOCK.bit_length() - 1)
        with m.State("blocks"), self._divide(m, blocks):
            m.d.sync += [self._share.eq(unit.quotient), extra.eq(unit.remainder)]
            m.next = "turn"
        # Channel 0 gets the block this far behind the first.
        with m.State("turn"), self._divide(m, place + self.start[: COUNT_BITS - 1]):
            m.d.sync += turn.eq(Mux(unit.remainder == 0, 0, self._channels - unit.remainder))
            m.next = "slot"
        self._multiply(m, "slot", slot, self._chunk, part["offset_low"], "chunks")
        with m.State("chunks"):
            m.d.comb += [unit.start.eq(1), unit.a.eq(self._share), unit.b.eq(self._chunk)]
            m.d.sync += part["offset_high"].eq(part["offset_low"] + self._chunk)
            with m.If(unit.done):
                m.d.sync += [
                    part["size_low"].eq(unit.product),
                    part["size_high"].eq(unit.product + self._chunk),
                ]
                m.next = "planned"

    def _plan_blocked(self, m: Module, part: Any) -> None:
        unit, per_chunk = self._unit, BLOCK // 2
        shift = per_chunk.bit_length() - 1
        with m.State("groups"):
            m.d.comb += [unit.start.eq(1), unit.a.eq(self._share), unit.b.eq(self.kgroups)]
            with m.If(unit.done):
                groups = unit.product + per_chunk - 1
                m.d.sync += [
                    self._low.eq(groups >> shift),
                    self._high.eq((groups + self.kgroups) >> shift),
                ]
                m.next = "blocked_low"
        self._multiply(m, "blocked_low", self._low, self._chunk, part["size_low"], "blocked_high")
        self._multiply(m, "blocked_high", self._high, self._chunk, part["size_high"], "planned")

    def _plan_whole(self, m: Module, part: Any) -> None:
        unit, bits = self._unit, self._word.bits
        with m.State("block"):  # a pair of rows takes 64 codes
            m.d.comb += [unit.start.eq(1), unit.a.eq(self._share), unit.b.eq(bits)]
            with m.If(unit.done):
                m.d.sync += [
                    self._low.eq((unit.product + 7) >> 3),
                    self._high.eq((unit.product + bits + 7) >> 3),
                ]
                m.next = "whole_low"
        low, high, groups = self._low, self._high, self.kgroups
        self._multiply(m, "whole_low", low, groups, part["size_low"], "whole_high")
        self._multiply(m, "whole_high", high, groups, part["size_high"], "skip_low")
        self._multiply(m, "skip_low", low, self.first, part["offset_low"], "skip_high")
        self._multiply(m, "skip_high", high, self.first, part["offset_high"], "planned")

    def _choose(self, m: Module, part: Any, extra: Any, place: Any, turn: Any) -> None:
        cyclic, more, further = self._word.cyclic, Signal(), Signal()
        m.d.comb += [
            self.last.eq(self.channel == self._channels - 1),
            more.eq(Mux(cyclic, turn, self.channel) < extra),
            further.eq(Mux(cyclic, place + turn >= self._channels, more)),
            self.size.eq(Mux(more, part["size_high"], part["size_low"])),
            self.offset.eq(Mux(further, part["offset_high"], part["offset_low"])),
        ]
        with m.If(self.next):
            m.d.sync += [
                self.channel.eq(Mux(self.last, 0, self.channel + 1)),
                turn.eq(Mux(turn == self._channels - 1, 0, turn + 1)),
            ]
