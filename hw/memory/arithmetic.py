"""What LD and ST compute about addresses and shares, a few bits a cycle and without DSPs."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import FormatWord

__all__ = ["COUNT_BITS", "Arithmetic", "ChunkSize", "ShareWalk", "times"]

COUNT_BITS = 20
"""Of row pairs, blocks, groups, rows of a table: what is divided or multiplied."""
FACTOR_BITS = 32
DIGIT = 4


def times(value: Value, factor: Any, bits: int) -> Value:
    """Their product from adders, `factor` being a constant or of `bits` bits."""
    if isinstance(factor, int):
        return sum((value << k for k in range(bits) if factor >> k & 1), start=value & 0)
    return sum((Mux(factor[k], value << k, 0) for k in range(bits)), start=value & 0)


class Arithmetic(wiring.Component):
    """Products, four bits of the second factor a cycle; quotients by a constant as products.

    x // d = (x * ceil(2^(n + l) / d)) >> (n + l) for x < 2^n and l = ceil(log2 d) (Granlund and
    Montgomery, 1994).

    Parameters
    ----------
    divisor : the constant.

    Members
    -------
    start : In, held with the operands until `done`, which comes one cycle after the last digit that
        is not 0 was used; `start` in the cycle of `done` is no new request.
    divide : In, b / divisor, else a * b.
    product : Out, low bits. quotient, remainder : Out.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = divisor
        super().__init__({
            "start": In(1), "divide": In(1), "a": In(FACTOR_BITS), "b": In(COUNT_BITS),
            "done": Out(1), "product": Out(FACTOR_BITS), "quotient": Out(COUNT_BITS),
            "remainder": Out(range(max(divisor, 2))),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        shift = COUNT_BITS + (self._divisor - 1).bit_length()
        inverse = -(-(1 << shift) // self._divisor)
        total = Signal(COUNT_BITS + inverse.bit_length())
        busy, factor, rest = Signal(), Signal.like(total), Signal(COUNT_BITS)
        now_factor, now_rest = Signal.like(total), Signal(COUNT_BITS)
        m.d.comb += [
            now_factor.eq(Mux(busy, factor, Mux(self.divide, inverse, self.a))),
            now_rest.eq(Mux(busy, rest, self.b)),
            self.product.eq(total),
            self.quotient.eq(total >> shift),
        ]
        m.d.sync += [busy.eq(0), self.done.eq(0)]
        with m.If(self.start & ~self.done):
            last = now_rest[DIGIT:] == 0
            m.d.sync += [
                total.eq(Mux(busy, total, 0) + times(now_factor, now_rest[:DIGIT], DIGIT)),
                factor.eq(now_factor << DIGIT),
                rest.eq(now_rest >> DIGIT),
                busy.eq(~last),
                self.done.eq(last),
            ]
        bits = len(self.remainder)
        multiple = times(self.quotient[:bits], self._divisor, self._divisor.bit_length())
        if self._divisor > 1:
            m.d.comb += self.remainder.eq(self.b[:bits] - multiple)
        return m


class ShareWalk(wiring.Component):
    """Walks over the channels' shares of a spread vector (`spec.formats.row_shares`).

    Parameters
    ----------
    channels : how many.

    Members
    -------
    pairs, extra, n : In, quotient and remainder of the vector's pairs by the channels, elements.
    restart : In, to channel 0. next : In, to the next channel, after the last to the first.
    channel, elements : Out, the channel and its elements (0 for some when the vector is short).
    last : Out, it is the last channel.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        count = COUNT_BITS + 1
        super().__init__({
            "pairs": In(COUNT_BITS), "extra": In(range(max(channels, 2))), "n": In(count),
            "restart": In(1), "next": In(1), "channel": Out(range(max(channels, 2))),
            "elements": Out(count), "last": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        left, share = Signal(COUNT_BITS + 1), Signal(COUNT_BITS + 1)
        m.d.comb += [
            share.eq((self.pairs + (self.channel < self.extra)) << 1),
            self.elements.eq(Mux(share < left, share, left)),
            self.last.eq(self.channel == self._channels - 1),
        ]
        with m.If(self.restart | (self.next & self.last)):
            m.d.sync += [self.channel.eq(0), left.eq(self.n)]
        with m.Elif(self.next):
            m.d.sync += [self.channel.eq(self.channel + 1), left.eq(left - self.elements)]
        return m


class ChunkSize(wiring.Component):
    """Sizes of a chunk's sections in units of 64 bytes, by `spec.formats.section_bytes`.

    Members
    -------
    word : In, the format word. header : Out, everything before the codes. chunk : Out, all of it.
    """

    def __init__(self) -> None:
        super().__init__({"word": In(FormatWord), "header": Out(8), "chunk": Out(8)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        word = self.word
        dense = word.kept == 0
        kept = Mux(dense, 4, word.kept)  # exponent of N in N:16
        codes, index, bitmap = Signal(8), Signal(8), Signal(8)
        private = word.private
        stored = Signal(9)  # codes of a row and group
        m.d.comb += [
            stored.eq(word.group << kept),
            codes.eq((times(stored, word.bits, 4) + 15) >> 4),
            bitmap.eq(Mux(private, word.group, (word.group + 1) >> 1)),
            index.eq(Mux(word.indices, Mux(private, (stored + 3) >> 2, (stored + 7) >> 3), bitmap)),
            self.header.eq(word.scale + word.second.any() + Mux(dense, 0, index)),
            self.chunk.eq(self.header + codes),
        ]
        return m
