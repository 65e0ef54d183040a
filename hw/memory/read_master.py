"""AXI4 read master of one channel: matrices to the weight FIFO, vectors to a FIFO of their own."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
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


class _Transfers(wiring.Component):
    """Commands of one kind, and the bursts of the one under way.

    Members
    -------
    i : In, stream of `ReadCommand`. waiting : Out, a command is here.
    step, clear, busy, burst_address, burst_beats : see `Splitter`.
    """

    def __init__(self, beat_bytes: int, address_bits: int, commands: int) -> None:
        self._sizes, self._commands = (beat_bytes, address_bits), commands
        super().__init__({
            "i": In(stream.Signature(ReadCommand(beat_bytes, address_bits))),
            "step": In(1), "clear": In(1), "busy": Out(1), "waiting": Out(1),
            "burst_address": Out(address_bits), "burst_beats": Out(range(BURST_BEATS + 1)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        shape = self.i.payload.shape()
        queue = SyncFIFO(width=len(self.i.payload.as_value()), depth=self._commands)
        m.submodules.queue = ResetInserter(self.clear)(queue)
        m.submodules.splitter = splitter = Splitter(*self._sizes)
        command, load = data.View(shape, queue.r_data), Signal()
        m.d.comb += [
            queue.w_data.eq(self.i.payload),
            queue.w_en.eq(self.i.valid & ~self.clear),
            self.i.ready.eq(queue.w_rdy & ~self.clear),
            load.eq(queue.r_rdy & (~splitter.busy | (self.step & splitter.last))),
            queue.r_en.eq(load),
            splitter.start.eq(load),
            splitter.address.eq(command.address),
            splitter.beats.eq(command.beats),
            splitter.step.eq(self.step),
            splitter.clear.eq(self.clear),
            self.busy.eq(splitter.busy),
            self.burst_address.eq(splitter.burst_address),
            self.burst_beats.eq(splitter.burst_beats),
            self.waiting.eq(splitter.busy | queue.r_rdy),
        ]
        return m


@shared()
class ReadMaster(wiring.Component):
    """Executes read commands: those for vectors in order, those for matrices in order, and vectors
    before matrices. A matrix that waits for room holds up no vector.

    A burst is asked for only when its FIFO has room for it that nothing else was promised, so
    `rready` is always high. Many bursts are under way at once; their answers come in order.

    Parameters
    ----------
    beat_bytes, address_bits : of the channel.
    weight_beats, vector_beats : depths of the FIFOs, at least a burst.
    outstanding : bursts under way at most. commands : commands of each kind that wait at most.

    Members
    -------
    i : In, stream of `ReadCommand`.
    weights, vectors : Out, streams of beats, each in the order of its commands.
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
        under_way = SyncFIFO(width=1, depth=self._outstanding)
        fifos = [WeightFifo(8 * self._beat, depth) for depth in self._depths]
        m.submodules.under_way = under_way
        m.submodules.weight_fifo, m.submodules.vector_fifo = (reset(fifo) for fifo in fifos)
        parts = [_Transfers(self._beat, self._address, self._commands) for _ in fifos]
        m.submodules.matrix_part, m.submodules.vector_part = parts
        for which, part in enumerate(parts):
            m.d.comb += [
                part.i.payload.eq(self.i.payload), part.clear.eq(clear),
                part.i.valid.eq(self.i.valid & (self.i.payload.vector == which)),
            ]  # fmt: skip
        m.d.comb += self.i.ready.eq(
            Mux(self.i.payload.vector, parts[1].i.ready, parts[0].i.ready)
        )
        chosen, free, quiet = Signal(), Signal(), Signal()
        axi = self.axi
        tie_constants(m, axi, "ar", self._beat)
        rooms = self._rooms(m, fifos, parts, clear)
        may = [part.busy & room for part, room in zip(parts, rooms)]
        m.d.comb += [
            clear.eq(self.abort | draining),
            quiet.eq(~under_way.r_rdy),
            self.idle.eq(quiet & ~Cat(part.waiting for part in parts).any() & ~clear),
            free.eq(under_way.w_rdy & (~axi.arvalid | axi.arready) & ~clear),
            chosen.eq(may[1]),
            parts[0].step.eq(free & may[0] & ~chosen),
            parts[1].step.eq(free & may[1]),
            under_way.w_en.eq(free & (may[0] | may[1])),
            under_way.w_data.eq(chosen),
        ]
        with m.If(under_way.w_en):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(Mux(chosen, parts[1].burst_address, parts[0].burst_address)),
                axi.arlen.eq(Mux(chosen, parts[1].burst_beats, parts[0].burst_beats) - 1),
            ]
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        self._answers(m, fifos, under_way, clear)
        with m.If(self.abort):
            m.d.sync += draining.eq(1)
        with m.Elif(quiet):
            m.d.sync += draining.eq(0)
        return m

    def _rooms(self, m: Module, fifos: Any, parts: Any, clear: Signal) -> list[Any]:
        """Whether each FIFO has room for its burst; keeps account of what was promised."""
        rooms = []
        for which, (fifo, depth, part) in enumerate(zip(fifos, self._depths, parts)):
            free = Signal(range(depth + 1), init=depth, name=f"free{which}")
            promised = Mux(part.step, part.burst_beats, 0)
            taken = fifo.o.valid & fifo.o.ready
            m.d.sync += free.eq(Mux(clear, depth, free - promised + taken))
            rooms.append(free >= part.burst_beats)
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
