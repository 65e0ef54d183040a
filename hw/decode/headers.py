"""The header sections of two units: scales, second section, index."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import INDEX_BYTES, SCALE_BYTES, log2
from flightllm.hw.decode.sections import HEADERS

__all__ = ["HeaderStore"]


class HeaderStore(wiring.Component):
    """Small memories of beats, written by `Sections`, read in the same cycle by the walker.

    Members
    -------
    write, place, bank, data : see `Sections`.
    read_bank : the header of this unit. pair : the pair-group in its chunk.
    scale, second : 16 bits of each of its two rows; of twin slices, then those of the odd pair of
        the two to which it belongs.
    index_place : where its mask begins, in units of 16 bits.
    index : the 2 * k_lanes bits around it, an aligned block; of twin slices twice as many.
    """

    def __init__(self, beat_bytes: int, k_lanes: int, twin: bool) -> None:
        self.beat_bytes, self.k_lanes, self.twin = beat_bytes, k_lanes, twin
        parts = 1 + twin
        super().__init__({
            "write": In(3),
            "place": In(log2(INDEX_BYTES // beat_bytes)),
            "bank": In(1),
            "data": In(8 * beat_bytes),
            "read_bank": In(1),
            "pair": In(4),
            "scale": Out(32 * parts),
            "second": Out(32 * parts),
            "index_place": In(log2(INDEX_BYTES // 2)),
            "index": Out(2 * k_lanes * parts),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        block = len(self.index)
        pair = self.pair[1:] if self.twin else self.pair
        scale, second = (Signal(len(self.scale), name=name) for name in ("scales", "seconds"))
        per_word = log2(8 * self.beat_bytes // len(scale))
        words = (
            ("scale", SCALE_BYTES, 0, pair, per_word, len(scale), scale),
            ("second", SCALE_BYTES, 1, pair, per_word, len(second), second),
            ("index", INDEX_BYTES, 2, self.index_place[log2(block // 16) :],
             log2(8 * self.beat_bytes // block), block, self.index),
        )  # fmt: skip
        for found, out in ((scale, self.scale), (second, self.second)):
            odd = found[-32:]
            own = Mux(self.pair[0], odd, found[:32])
            m.d.comb += out.eq(Cat(own, odd) if self.twin else found)
        for name, size, number, address, inside, width, out in words:
            beats = size // self.beat_bytes
            store = memory.Memory(shape=8 * self.beat_bytes, depth=HEADERS * beats, init=[])
            m.submodules[name] = store
            write, read = store.write_port(), store.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.write[number]),
                write.data.eq(self.data),
                write.addr.eq(Cat(self.place[: log2(beats)], self.bank)),
                read.addr.eq(Cat(address[inside:], self.read_bank)),
            ]
            parts = Array(
                read.data[k : k + width] for k in range(0, 8 * self.beat_bytes, width)
            )
            choice = Signal(max(1, inside), name=f"{name}_choice")
            m.d.comb += [choice.eq(address[:inside]), out.eq(parts[choice])]
        return m
