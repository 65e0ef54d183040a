"""AXI4 read master of one channel: matrices to the weight FIFO, vectors to a FIFO of their own."""

from typing import Any

from amaranth.hdl import Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.memory.axi import BURST_BEATS, Splitter, read_channel, tie_constants
from flightllm.hw.memory.weight_fifo import WeightFifo
from flightllm.hw.sharing import shared
from flightllm.spec.timing import MASTER_COMMANDS, OUTSTANDING

__all__ = ["ReadCommand", "ReadMaster"]


class ReadCommand(data.StructLayout):
    """A transfer.

    Members
    -------
    address : bytes, a multiple of a beat. beats : length, 0 for none.
    vector : the beats go to the vector FIFO, else to the weight FIFO.
    """

    def __init__(self, beat_bytes: int, address_bits: int) -> None:
        beats = address_bits - (beat_bytes.bit_length() - 1)
        super().__init__({"address": address_bits, "beats": beats, "vector": 1})


@shared()
class ReadMaster(wiring.Component):
    """Executes read commands in order.

    A burst is asked for only when its FIFO has room for it that nothing else was promised, so
    `rready` is always high. Many bursts are under way at once; their answers come in order.

    Parameters
    ----------
    beat_bytes, address_bits : of the channel.
    weight_beats, vector_beats : depths of the FIFOs, at least a burst.
    outstanding : bursts under way at most. commands : commands that wait at most.

    Members
    -------
    i : In, stream of `ReadCommand`.
    weights, vectors : Out, streams of beats in the order of their commands.
    axi : Out, the channel.
    abort : In, a pulse drops all commands and beats. What is under way on the bus is drained first;
        commands wait for that.
    idle : Out, no command is under way and the bus is quiet (beats may wait in the FIFOs).
    error : Out, sticky until abort: a beat came with an error response.
    """

    def __init__(self, beat_bytes: int, address_bits: int, weight_beats: int, vector_beats: int,
                 outstanding: int = OUTSTANDING,
                 commands: int = MASTER_COMMANDS) -> None:  # fmt: skip
        for name, value in (("weight_beats", weight_beats), ("vector_beats", vector_beats)):
            if value < BURST_BEATS:
                raise ValueError(f"ReadMaster {name} must be at least {BURST_BEATS}, not {value!r}")
        self._beat, self._address = beat_bytes, address_bits
        self._depths = (weight_beats, vector_beats)
        self._outstanding, self._commands = outstanding, commands
        beats = stream.Signature(8 * beat_bytes)
        super().__init__({
            "i": In(stream.Signature(ReadCommand(beat_bytes, address_bits))),
            "weights": Out(beats),
            "vectors": Out(beats),
            "axi": Out(read_channel(beat_bytes, address_bits)),
            "abort": In(1),
            "idle": Out(1),
            "error": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        draining, clear = Signal(), Signal()
        reset = ResetInserter(clear)
        shape = self.i.payload.shape()
        queue = SyncFIFO(width=len(self.i.payload.as_value()), depth=self._commands)
        under_way = SyncFIFO(width=1, depth=self._outstanding)
        splitter = Splitter(self._beat, self._address)
        fifos = [WeightFifo(8 * self._beat, depth) for depth in self._depths]
        m.submodules.queue, m.submodules.under_way = reset(queue), under_way
        m.submodules.splitter = splitter
        m.submodules.weight_fifo, m.submodules.vector_fifo = (reset(fifo) for fifo in fifos)

        command, vector = data.View(shape, queue.r_data), Signal()
        issue, load, quiet = Signal(), Signal(), Signal()
        axi = self.axi
        tie_constants(m, axi, "ar", self._beat)
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
            quiet.eq(~under_way.r_rdy),
            self.idle.eq(quiet & ~splitter.busy & ~queue.r_rdy & ~clear),
        ]
        with m.If(load):
            m.d.sync += vector.eq(command.vector)

        rooms = self._rooms(m, fifos, issue, vector, splitter.burst_beats, clear)
        m.d.comb += [
            issue.eq(
                splitter.busy & under_way.w_rdy & (~axi.arvalid | axi.arready) & ~clear
                & Mux(vector, rooms[1], rooms[0])
            ),
            under_way.w_en.eq(issue),
            under_way.w_data.eq(vector),
        ]  # fmt: skip
        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(splitter.burst_address),
                axi.arlen.eq(splitter.burst_beats - 1),
            ]
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        self._answers(m, fifos, under_way, clear)
        with m.If(self.abort):
            m.d.sync += draining.eq(1)
        with m.Elif(quiet):
            m.d.sync += draining.eq(0)
        return m

    def _rooms(self, m: Module, fifos: Any, issue: Signal, vector: Signal, beats: Any,
               clear: Signal) -> list[Any]:  # fmt: skip
        """Whether each FIFO has room for `beats`; keeps account of what was promised."""
        rooms = []
        for which, (fifo, depth) in enumerate(zip(fifos, self._depths)):
            free = Signal(range(depth + 1), init=depth, name=f"free{which}")
            promised = Mux(issue & (vector == which), beats, 0)
            taken = fifo.o.valid & fifo.o.ready
            m.d.sync += free.eq(Mux(clear, depth, free - promised + taken))
            rooms.append(free >= beats)
        return rooms

    def _answers(self, m: Module, fifos: Any, under_way: Any, clear: Signal) -> None:
        axi = self.axi
        m.d.comb += [
            axi.rready.eq(1),
            under_way.r_en.eq(axi.rvalid & axi.rlast),
        ]
        for which, (fifo, port) in enumerate(zip(fifos, (self.weights, self.vectors))):
            mine = under_way.r_rdy & (under_way.r_data == which)
            m.d.comb += [
                fifo.i.valid.eq(axi.rvalid & mine),
                fifo.i.payload.eq(axi.rdata),
                port.valid.eq(fifo.o.valid & ~clear),
                port.payload.eq(fifo.o.payload),
                fifo.o.ready.eq(port.ready & ~clear),
            ]
        with m.If(self.abort):
            m.d.sync += self.error.eq(0)
        with m.Elif(axi.rvalid & axi.rresp[1] & under_way.r_rdy & ~clear):
            m.d.sync += self.error.eq(1)
