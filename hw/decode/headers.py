"""The header sections of two units: scales, second section, index."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Signal
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
    scale, second : 16 bits of each of its two rows.
    index_place : where its mask begins, in units of 16 bits.
    index : the 2 * k_lanes bits around it, an aligned block.
    """

    def __init__(self, beat_bytes: int, k_lanes: int) -> None:
        self.beat_bytes, self.k_lanes = beat_bytes, k_lanes
        super().__init__({
            "write": In(3),
            "place": In(log2(INDEX_BYTES // beat_bytes)),
            "bank": In(1),
            "data": In(8 * beat_bytes),
            "read_bank": In(1),
            "pair": In(4),
            "scale": Out(32),
            "second": Out(32),
            "index_place": In(log2(INDEX_BYTES // 2)),
            "index": Out(2 * k_lanes),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        per_word = log2(self.beat_bytes // 4)
        words = (
            ("scale", SCALE_BYTES, 0, self.pair, per_word, 32, self.scale),
            ("second", SCALE_BYTES, 1, self.pair, per_word, 32, self.second),
            ("index", INDEX_BYTES, 2, self.index_place[log2(self.k_lanes // 8) :],
             log2(4 * self.beat_bytes // self.k_lanes), 2 * self.k_lanes, self.index),
        )  # fmt: skip
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
