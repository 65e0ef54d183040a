"""AXI4 write master of one channel: commands, and beats with byte strobes."""

from typing import Any

from amaranth.hdl import Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.axi import BURST_BEATS, Splitter, tie_constants, write_channel
from flightllm.hw.sharing import shared
from flightllm.spec.timing import MASTER_COMMANDS, WRITES

__all__ = ["WriteBeat", "WriteCommand", "WriteMaster"]


class WriteCommand(data.StructLayout):
    """A transfer: byte address, a multiple of a beat, and its length in beats, 0 for none."""

    def __init__(self, beat_bytes: int, address_bits: int) -> None:
        beats = address_bits - (beat_bytes.bit_length() - 1)
        super().__init__({"address": address_bits, "beats": beats})


class WriteBeat(data.StructLayout):
    """Bytes, and which of them are written."""

    def __init__(self, beat_bytes: int) -> None:
        super().__init__({"bytes": 8 * beat_bytes, "strobe": beat_bytes})


@shared()
class WriteMaster(wiring.Component):
    """Executes write commands in order.

    Parameters
    ----------
    beat_bytes, address_bits : of the channel.
    outstanding : bursts without their response at most. commands : commands that wait at most.

    Members
    -------
    i : In, stream of `WriteCommand`. data : In, stream of `WriteBeat`, those of all commands in
        order; they may come later than their command or before it.
    axi : Out, the channel.
    abort : In, a pulse drops all commands. A burst that was begun ends with empty strobes and its
        response is awaited; commands wait for that.
    idle : Out, no command is under way and every response has come.
    error : Out, sticky until abort: a response was an error.
    """

    def __init__(self, beat_bytes: int, address_bits: int, outstanding: int = WRITES,
                 commands: int = MASTER_COMMANDS) -> None:  # fmt: skip
        self._beat, self._address = beat_bytes, address_bits
        self._outstanding, self._commands = outstanding, commands
        super().__init__({
            "i": In(stream.Signature(WriteCommand(beat_bytes, address_bits))),
            "data": In(stream.Signature(WriteBeat(beat_bytes))),
            "axi": Out(write_channel(beat_bytes, address_bits)),
            "abort": In(1),
            "idle": Out(1),
            "error": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        draining, clear, quiet = Signal(), Signal(), Signal()
        shape = self.i.payload.shape()
        queue = SyncFIFO(width=len(self.i.payload.as_value()), depth=self._commands)
        bursts = SyncFIFO(width=(BURST_BEATS - 1).bit_length(), depth=self._outstanding)
        splitter = Splitter(self._beat, self._address)
        m.submodules.queue = ResetInserter(clear)(queue)
        m.submodules.bursts, m.submodules.splitter = bursts, splitter
        command = data.View(shape, queue.r_data)
        issue, load = Signal(), Signal()
        pending = Signal(range(self._outstanding + 1))
        axi = self.axi
        tie_constants(m, axi, "aw", self._beat)
        m.d.comb += [
            clear.eq(self.abort | draining),
            queue.w_data.eq(self.i.payload),
            queue.w_en.eq(self.i.valid & ~clear),
            self.i.ready.eq(queue.w_rdy & ~clear),
            load.eq(queue.r_rdy & (~splitter.busy | (issue & splitter.last))),
            queue.r_en.eq(load),
            splitter.start.eq(load),
            splitter.address.eq(command.address),
            splitter.beats.eq(command.beats),
            splitter.step.eq(issue),
            splitter.clear.eq(clear),
            # W may not wait for AWREADY (IHI 0022, A3.3.1): a burst's beats may go as soon as its
            # address is offered.
            issue.eq(
                splitter.busy & (pending != self._outstanding) & bursts.w_rdy
                & (~axi.awvalid | axi.awready) & ~clear
            ),
            bursts.w_en.eq(issue),
            bursts.w_data.eq(splitter.burst_beats - 1),
            quiet.eq(pending == 0),
            self.idle.eq(quiet & ~splitter.busy & ~queue.r_rdy & ~clear),
        ]  # fmt: skip
        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(splitter.burst_address),
                axi.awlen.eq(splitter.burst_beats - 1),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        m.d.sync += pending.eq(pending + issue - (axi.bvalid & ~quiet))
        self._beats(m, bursts, clear)
        self._responses(m, clear)
        with m.If(self.abort):
            m.d.sync += draining.eq(1)
        with m.Elif(quiet):
            m.d.sync += draining.eq(0)
        return m

    def _beats(self, m: Module, bursts: Any, clear: Signal) -> None:
        axi, beat = self.axi, self.data.payload
        place = Signal(range(BURST_BEATS))
        free, move, last = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(bursts.r_rdy & (~axi.wvalid | axi.wready)),
            move.eq(free & (self.data.valid | clear)),
            last.eq(place == bursts.r_data),
            self.data.ready.eq(free & ~clear),
            bursts.r_en.eq(move & last),
        ]
        with m.If(move):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(beat.bytes),
                axi.wstrb.eq(Mux(clear, 0, beat.strobe)),
                axi.wlast.eq(last),
                place.eq(Mux(last, 0, place + 1)),
            ]
        with m.Elif(axi.wready):
            m.d.sync += axi.wvalid.eq(0)

    def _responses(self, m: Module, clear: Signal) -> None:
        m.d.comb += self.axi.bready.eq(1)
        with m.If(self.abort):
            m.d.sync += self.error.eq(0)
        with m.Elif(self.axi.bvalid & self.axi.bresp[1] & ~clear):
            m.d.sync += self.error.eq(1)
