"""The gear box: beats of codes in, any number of bytes out from any byte."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import log2

__all__ = ["CodeRing", "align", "beats_of_slice", "ring_beats"]


def beats_of_slice(beat_bytes: int, k_lanes: int) -> int:
    """Beats that a slice of 8-bit codes touches at most."""
    return -(-(2 * k_lanes + beat_bytes - 1) // beat_bytes)


def ring_beats(beat_bytes: int, k_lanes: int) -> int:
    """Beats in the ring: twice the largest slice, at least four."""
    return max(4, 1 << (4 * k_lanes // beat_bytes - 1).bit_length())


class CodeRing(wiring.Component):
    """Registers of whole beats, written in turn and read from a byte position.

    Twice the largest slice, at least four beats: a beat comes in while a slice waits.

    Members
    -------
    push, data : a beat. room : there is place for it.
    available : bytes from the read position on.
    take : bytes to move on. round_up : and on to the next whole beat. flush : drop everything,
        what is pushed in this cycle included.
    head : the beats at the read position. offset : its byte in the first of them.
    """

    def __init__(self, beat_bytes: int, k_lanes: int) -> None:
        self.beat_bytes = beat_bytes
        self.beats = ring_beats(beat_bytes, k_lanes)
        self.reach = beats_of_slice(beat_bytes, k_lanes)
        size = self.beats * beat_bytes
        super().__init__({
            "push": In(1),
            "data": In(8 * beat_bytes),
            "room": Out(1),
            "available": Out(range(size + 1)),
            "take": In(range(2 * k_lanes + 1)),
            "round_up": In(1),
            "flush": In(1),
            "head": Out(8 * beat_bytes * self.reach),
            "offset": Out(log2(beat_bytes)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        low, turn = log2(self.beat_bytes), log2(self.beats)
        slots = Array(
            Signal(8 * self.beat_bytes, name=f"slot_{k}", reset_less=True)
            for k in range(self.beats)
        )
        write, read = Signal(turn + 1), Signal(low + turn + 1)
        written = (write + self.push)[: turn + 1]
        moved = (read + self.take)[: low + turn + 1]
        rounded = ((moved + self.beat_bytes - 1) >> low)[: turn + 1]
        m.d.comb += [
            self.room.eq((write ^ read[low:]) != self.beats),
            self.available.eq(((write << low) - read)[: low + turn + 1]),
            self.offset.eq(read[:low]),
            self.head.eq(Cat(
                slots[(read[low : low + turn] + k)[:turn]] for k in range(self.reach)
            )),
        ]  # fmt: skip
        m.d.sync += [
            write.eq(written),
            read.eq(Mux(self.flush, written << low, Mux(self.round_up, rounded << low, moved))),
        ]
        for k, slot in enumerate(slots):
            with m.If(self.push & (write[:turn] == k)):
                m.d.sync += slot.eq(self.data)
        return m


def align(head: Value, offset: Value, k_lanes: int) -> Value:
    """The 2 * k_lanes bytes of `head` from byte `offset` on, in order of the low end.

    Positions that are no multiple of 4 bytes only occur with slices of at most 16 bytes, and odd
    ones with at most 8: those two steps are that narrow.
    """
    out, size = head, 2 * k_lanes
    for k in reversed(range(2, len(offset))):
        kept = min(len(out) // 8, size + (1 << k) - 4)
        moved = out[8 << k :][: 8 * kept]
        out = Mux(offset[k], moved, out[: 8 * kept])
    for k, width in ((1, 16), (0, 8)):
        narrow = Mux(offset[k], out[8 << k :][: 8 * width], out[: 8 * width])
        out = Cat(narrow[: 8 * width], out[8 * width :])
    return out[: 8 * size]
