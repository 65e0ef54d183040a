"""What waits for a unit: words of its next instructions, and where each stands in the program."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import unit_instructions
from flightllm.hw.memory.weight_fifo import WeightFifo
from flightllm.hw.sharing import shared
from flightllm.spec.isa import QUEUE_DEPTH, Unit

__all__ = ["UnitQueue"]


@shared()
class UnitQueue(wiring.Component):
    """Takes words until `QUEUE_DEPTH` instructions wait; a word passes in two cycles.

    Parameters
    ----------
    unit : whose queue. address_bits : of a word of the program.

    Members
    -------
    i, o : streams of words, from the dispatcher and to the unit.
    first : In, the word at `i` is the first of an instruction. address : In, its address.
    started : In, a pulse: the unit begins its next instruction. next : Out, that one's address.
    current : Out, the address of the instruction that began last.
    empty : Out, no instruction waits.
    """

    def __init__(self, unit: Unit, address_bits: int) -> None:
        longest = max(entry.words for entry in unit_instructions(unit))
        self._words = 1 << (QUEUE_DEPTH * longest - 1).bit_length()
        super().__init__({
            "i": In(stream.Signature(32)),
            "o": Out(stream.Signature(32)),
            "first": In(1), "address": In(address_bits),
            "started": In(1), "next": Out(address_bits), "current": Out(address_bits),
            "empty": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.words = words = WeightFifo(32, self._words)
        m.submodules.places = places = SyncFIFO(width=len(self.address), depth=QUEUE_DEPTH)
        room = Signal()
        m.d.comb += [
            room.eq(~self.first | places.w_rdy),
            words.i.valid.eq(self.i.valid & room),
            words.i.payload.eq(self.i.payload),
            self.i.ready.eq(words.i.ready & room),
            places.w_en.eq(self.i.valid & self.i.ready & self.first),
            places.w_data.eq(self.address),
            places.r_en.eq(self.started),
            self.next.eq(places.r_data),
            self.empty.eq(~places.r_rdy),
        ]
        wiring.connect(m, words.o, wiring.flipped(self.o))
        with m.If(self.started):
            m.d.sync += self.current.eq(places.r_data)
        return m
