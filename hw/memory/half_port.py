"""From a core's channel to a memory port of half its width at about twice its clock.

HBM ports are 256 bits wide and run at up to 450 MHz, a core's channel is 512 bits at half of that.
Each of the five AXI channels crosses in an asynchronous FIFO, so the clocks need no fixed relation.
A burst of up to 16 wide beats becomes one of up to 16 narrow beats, or two.
"""

from typing import Any

from amaranth.hdl import Cat, DomainRenamer, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import AsyncFIFO, SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.axi import BURST_BEATS, channel_signature, tie_constants
from flightllm.hw.sharing import shared

__all__ = ["HalfPort"]

HALF_BURST = BURST_BEATS // 2
"""Wide beats of a narrow burst, at most."""
CROSSING = 16
"""Depth of the FIFOs: the way there and back, at full rate."""
PARTS = 64
"""Narrow bursts under way at most, each way."""
FAST = "fast"


@shared(clocked=(FAST,))
class HalfPort(wiring.Component):
    """Passes transfers on, in order.

    Parameters
    ----------
    beat_bytes : of the wide side. address_bits : of both.

    Members
    -------
    wide : In, a master's channel, in `sync`. narrow : Out, to the memory, in `fast`.
    """

    def __init__(self, beat_bytes: int, address_bits: int) -> None:
        self._beat, self._address = beat_bytes, address_bits
        super().__init__({
            "wide": In(channel_signature(beat_bytes, address_bits)),
            "narrow": Out(channel_signature(beat_bytes // 2, address_bits)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._read_data(m, self._addresses(m, "ar"))
        self._write_data(m)
        self._responses(m, self._addresses(m, "aw"))
        return m

    def _there(self, m: Module, name: str, width: int) -> Any:
        """A FIFO from the core to the memory."""
        fifo = AsyncFIFO(width=width, depth=CROSSING, w_domain="sync", r_domain=FAST)
        m.submodules[name] = fifo
        return fifo

    def _back(self, m: Module, name: str, width: int) -> Any:
        fifo = AsyncFIFO(width=width, depth=CROSSING, w_domain=FAST, r_domain="sync")
        m.submodules[name] = fifo
        return fifo

    def _parts(self, m: Module, name: str) -> Any:
        """For each narrow burst under way, whether it ends a wide one."""
        fifo = SyncFIFO(width=1, depth=PARTS)
        m.submodules[f"{name}_parts"] = DomainRenamer(FAST)(fifo)
        return fifo

    def _addresses(self, m: Module, prefix: str) -> Any:
        """One burst, or two where its beats become more than 16; their `_parts`."""
        wide, narrow = (
            {name: getattr(side, prefix + name) for name in ("addr", "len", "valid", "ready")}
            for side in (self.wide, self.narrow)
        )
        length = BURST_BEATS.bit_length() - 1
        fifo = self._there(m, prefix, self._address + length)
        parts = self._parts(m, prefix)
        tie_constants(m, self.narrow, prefix, self._beat // 2)
        address, beats = Signal(self._address), Signal(length + 1)  # wide beats of the burst
        second, long, offered, go = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            fifo.w_data.eq(Cat(wide["len"][:length], wide["addr"])),
            fifo.w_en.eq(wide["valid"]),
            wide["ready"].eq(fifo.w_rdy),
            address.eq(fifo.r_data[length:]), beats.eq(fifo.r_data[:length] + 1),
            long.eq(beats > HALF_BURST),
            offered.eq(fifo.r_rdy & parts.w_rdy),
            go.eq(offered & (~narrow["valid"] | narrow["ready"])),
            fifo.r_en.eq(go & (second | ~long)),
            parts.w_en.eq(go), parts.w_data.eq(second | ~long),
        ]  # fmt: skip
        with m.If(go):
            m.d.fast += [
                second.eq(long & ~second),
                narrow["valid"].eq(1),
                narrow["addr"].eq(address + Mux(second, HALF_BURST * self._beat, 0)),
                narrow["len"].eq(
                    (Mux(second, beats - HALF_BURST, Mux(long, HALF_BURST, beats)) << 1) - 1
                ),
            ]
        with m.Elif(narrow["ready"]):
            m.d.fast += narrow["valid"].eq(0)
        return parts

    def _read_data(self, m: Module, parts: Any) -> None:
        """Two narrow beats make a wide one; only a wide burst's last is told as last."""
        wide, narrow, half = self.wide, self.narrow, 4 * self._beat
        fifo = self._back(m, "r", 8 * self._beat + 3)
        low, low_resp, second = Signal(half), Signal(2), Signal()
        taken, last = Signal(), Signal()
        m.d.comb += [
            narrow.rready.eq(~second | fifo.w_rdy),
            taken.eq(narrow.rvalid & narrow.rready),
            last.eq(narrow.rlast & parts.r_data),
            parts.r_en.eq(taken & narrow.rlast),
            fifo.w_en.eq(narrow.rvalid & second),
            fifo.w_data.eq(Cat(low, narrow.rdata, low_resp | narrow.rresp, last)),
            Cat(wide.rdata, wide.rresp, wide.rlast).eq(fifo.r_data),
            wide.rvalid.eq(fifo.r_rdy),
            fifo.r_en.eq(wide.rready),
        ]
        with m.If(taken):
            m.d.fast += [second.eq(~second), low.eq(narrow.rdata), low_resp.eq(narrow.rresp)]

    def _write_data(self, m: Module) -> None:
        """A wide beat leaves as two; the eighth ends a narrow burst, as does the last."""
        wide, narrow, half = self.wide, self.narrow, self._beat // 2
        fifo = self._there(m, "w", 9 * self._beat + 1)
        place, second, last = Signal(range(HALF_BURST)), Signal(), Signal()
        data_in, strobe = Signal(8 * self._beat), Signal(self._beat)
        sent = Signal()
        m.d.comb += [
            fifo.w_data.eq(Cat(wide.wlast, wide.wstrb, wide.wdata)),
            fifo.w_en.eq(wide.wvalid),
            wide.wready.eq(fifo.w_rdy),
            Cat(last, strobe, data_in).eq(fifo.r_data),
            narrow.wvalid.eq(fifo.r_rdy),
            narrow.wdata.eq(data_in.word_select(second, 8 * half)),
            narrow.wstrb.eq(strobe.word_select(second, half)),
            narrow.wlast.eq(second & (last | (place == HALF_BURST - 1))),
            sent.eq(narrow.wvalid & narrow.wready),
            fifo.r_en.eq(sent & second),
        ]
        with m.If(sent):
            m.d.fast += second.eq(~second)
            with m.If(second):
                m.d.fast += place.eq(Mux(narrow.wlast, 0, place + 1))

    def _responses(self, m: Module, parts: Any) -> None:
        """The responses of both halves of a burst become one, the worse."""
        wide, narrow = self.wide, self.narrow
        fifo = self._back(m, "b", 2)
        worse, taken = Signal(2), Signal()
        m.d.comb += [
            narrow.bready.eq(fifo.w_rdy),
            taken.eq(narrow.bvalid & narrow.bready),
            parts.r_en.eq(taken),
            fifo.w_en.eq(taken & parts.r_data),
            fifo.w_data.eq(narrow.bresp | worse),
            wide.bresp.eq(fifo.r_data),
            wide.bvalid.eq(fifo.r_rdy),
            fifo.r_en.eq(wide.bready),
        ]
        with m.If(taken):
            m.d.fast += worse.eq(Mux(parts.r_data, 0, narrow.bresp))
