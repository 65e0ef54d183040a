"""The LD unit: streams of matrices into the weight FIFOs, vectors into F."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.memory.axi import read_channel
from flightllm.hw.memory.buffers import read_port, write_port
from flightllm.hw.memory.read_master import ReadCommand, ReadMaster
from flightllm.hw.memory.stream_plan import StreamPlan
from flightllm.hw.memory.vector_load import OPERANDS, ChannelPart, VectorLoad
from flightllm.hw.sharing import shared
from flightllm.spec.formats import ALIGN
from flightllm.spec.isa import Unit, by_name
from flightllm.spec.timing import OUTSTANDING, VECTOR_BEATS

__all__ = ["LoadUnit"]


class _Control(wiring.Component):
    """Executes LD's instructions; everything of the unit but the masters.

    A matrix behind vectors is planned and asked for while their data are on the way, if it waits
    for nobody: their requests are sent, and those of the matrix may follow.

    Members
    -------
    queue, semaphores, f_read, f_write : see `LoadUnit`.
    requests : Out, stream of `ChannelPart`. vector : Out, they are for vectors.
    beats : In, a stream a channel. busy : Out. stalled, hungry, outside : Out, see `LoadUnit`.
    """

    def __init__(self, channels: int, beat_bytes: int, lanes: int, channel_bytes: int) -> None:
        self._channels, self._beat, self._lanes = channels, beat_bytes, lanes
        self._limit = channel_bytes // ALIGN
        super().__init__({
            "queue": In(stream.Signature(32)),
            "semaphores": Out(semaphore_signature),
            "f_read": Out(read_port(lanes)),
            "f_write": Out(write_port(lanes, 32)),
            "requests": Out(stream.Signature(ChannelPart(channels))),
            "vector": Out(1),
            "beats": In(stream.Signature(8 * beat_bytes)).array(channels),
            **dict.fromkeys(("busy", "stalled", "hungry", "outside"), Out(1)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front = front = UnitFrontEnd(Unit.LD)
        m.submodules.plan = plan = StreamPlan(self._channels)
        m.submodules.vectors = vectors = VectorLoad(self._channels, self._beat, self._lanes)
        wiring.connect(m, wiring.flipped(self.queue), front.queue)
        wiring.connect(m, front.semaphores, wiring.flipped(self.semaphores))
        wiring.connect(m, vectors.f_read, wiring.flipped(self.f_read))
        wiring.connect(m, vectors.f_write, wiring.flipped(self.f_write))
        for mine, outer in zip(vectors.beats, self.beats):
            wiring.connect(m, wiring.flipped(outer), mine)
        stream_, vec, gather = (by_name(f"ld.{name}") for name in ("stream", "vec", "gather"))
        is_stream = front.function == stream_.function
        is_gather = front.function == gather.function
        is_vector = (front.function == vec.function) | is_gather
        early, begin, over, ending = (Signal(name=name) for name in (
            "early", "begin_early", "over", "ending",
        ))  # fmt: skip

        def operand(name: str) -> Value:
            now, coming = (front.operand("ld.stream", name, c) for c in (False, True))
            return Mux(early | begin, coming, now)

        for name in ("rows", "kgroups", "fmt", "first", "start"):
            m.d.comb += getattr(plan, name).eq(operand(name))
        for name in OPERANDS:  # ld.vec's operands are the first of ld.gather's
            m.d.comb += getattr(vectors, name).eq(front.operand("ld.gather", name))
        assert vec.flags == gather.flags == ("half",)
        m.d.comb += [
            vectors.half.eq(front.flags[0]),
            vectors.gather.eq(is_gather),
            begin.eq(
                front.busy & is_vector & vectors.sent & ~early & front.complete
                & (front.next_function == stream_.function) & (front.semaphores.wait == 0)
            ),
            plan.go.eq(begin | (front.start & is_stream & ~early)),
            ending.eq(plan.planned & plan.next & plan.last),
            vectors.go.eq(front.start & is_vector),
            self.vector.eq(is_vector & ~early),
            self.busy.eq(~front.idle),
            self.hungry.eq(
                front.busy & is_vector & ~Cat(port.valid for port in self.beats).any()
            ),
        ]  # fmt: skip
        with m.If(begin):
            m.d.sync += early.eq(1)
        with m.Elif(front.start & is_stream):
            m.d.sync += early.eq(0)
        m.d.sync += over.eq(early & ~(front.start & is_stream) & (over | ending))
        self._send(m, plan, vectors, operand("addr"), early)
        nothing = Signal()
        m.d.sync += nothing.eq(front.start & Mux(is_stream, over | (early & ending), ~is_vector))
        m.d.comb += front.done.eq(nothing | vectors.done | (ending & ~early))
        return m

    def _send(self, m: Module, plan: Any, vectors: Any, address: Value, early: Signal) -> None:
        """Requests of the stream plan or of the vectors; only one of them has any."""
        request, size = self.requests, (ALIGN // self._beat).bit_length() - 1
        wanted, beyond, payload = Signal(), Signal(), request.payload
        end = payload.address + ((payload.beats + (1 << size) - 1) >> size)
        m.d.comb += [
            beyond.eq(wanted & (end > self._limit)),
            self.outside.eq(beyond & ~early),  # else it waits for its instruction's start
            request.valid.eq(wanted & ~beyond),
            self.stalled.eq(request.valid & ~request.ready),
            vectors.requests.ready.eq(request.ready),
            plan.next.eq(
                plan.planned & ((request.ready & ~(beyond & early)) | (plan.size == 0))
            ),
        ]
        with m.If(self.vector):
            m.d.comb += [
                request.payload.eq(vectors.requests.payload),
                wanted.eq(vectors.requests.valid),
            ]
        with m.Else():
            m.d.comb += [
                request.payload.channel.eq(plan.channel),
                request.payload.address.eq(address + plan.offset),
                request.payload.beats.eq(plan.size << size),
                wanted.eq(plan.planned & (plan.size != 0)),
            ]


@shared()
class LoadUnit(wiring.Component):
    """LD and the channels' read masters.

    ld.stream is done when every channel's part waits at its master, before its data arrive;
    ld.vec and ld.gather when F holds the last word. Matrices come in order, and so do vectors; at
    the masters vectors go before matrices that wait for room.

    Parameters
    ----------
    channels, beat_bytes : of the core. lanes : words of an access to F.
    prefetch_bytes : of a channel's weight FIFO. channel_bytes : memory of a channel.
    vector_beats : depth of a channel's FIFO for vectors. outstanding : bursts under way a channel.

    Members
    -------
    queue : In, words of instructions. semaphores : Out.
    f_read, f_write : Out, ports of F.
    weights : Out, a stream of beats a channel, the matrices in order.
    axi : Out, a read channel each.
    abort : In, a pulse drops everything; the bus is drained, instructions after it wait for that.
    busy : Out, an instruction runs or waits. idle : Out, none does, and the bus is quiet.
    stalled : Out, a request waits for a channel. hungry : Out, vectors wait for data.
    error : Out, one bit a channel, sticky until abort: an error response.
    outside : Out, a pulse: an address lies outside the channel; nothing is asked for there.
    requested : Out, the channel of that request.
    """

    def __init__(
        self,
        channels: int,
        beat_bytes: int,
        lanes: int,
        prefetch_bytes: int,
        channel_bytes: int = 1 << 32,
        vector_beats: int = VECTOR_BEATS,
        outstanding: int = OUTSTANDING,
    ) -> None:
        self._channels, self._beat, self._lanes = channels, beat_bytes, lanes
        self._bytes, address_bits = channel_bytes, (channel_bytes - 1).bit_length()
        self._master = (beat_bytes, address_bits, prefetch_bytes // beat_bytes, vector_beats,
                        outstanding)  # fmt: skip
        super().__init__({
            "queue": In(stream.Signature(32)),
            "semaphores": Out(semaphore_signature),
            "f_read": Out(read_port(lanes)),
            "f_write": Out(write_port(lanes, 32)),
            "weights": Out(stream.Signature(8 * beat_bytes)).array(channels),
            "axi": Out(read_channel(beat_bytes, address_bits)).array(channels),
            "abort": In(1),
            **dict.fromkeys(("busy", "idle", "stalled", "hungry", "outside"), Out(1)),
            "requested": Out(range(max(channels, 2))),
            "error": Out(channels),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        control = _Control(self._channels, self._beat, self._lanes, self._bytes)
        m.submodules.control = ResetInserter(self.abort)(control)
        masters = [ReadMaster(*self._master) for _ in range(self._channels)]
        for name in ("semaphores", "f_read", "f_write"):
            wiring.connect(m, getattr(control, name), wiring.flipped(getattr(self, name)))
        wiring.connect(m, wiring.flipped(self.queue), control.queue)
        request = control.requests
        shape = ReadCommand(*self._master[:2])
        for channel, master in enumerate(masters):
            m.submodules[f"master{channel}"] = master
            wiring.connect(m, master.axi, wiring.flipped(self.axi[channel]))
            wiring.connect(m, master.weights, wiring.flipped(self.weights[channel]))
            wiring.connect(m, master.vectors, control.beats[channel])
            command = Signal(shape, name=f"command{channel}")
            m.d.comb += [
                master.abort.eq(self.abort),
                command.address.eq(request.payload.address << (ALIGN.bit_length() - 1)),
                command.beats.eq(request.payload.beats),
                command.vector.eq(control.vector),
                master.i.payload.eq(command),
                master.i.valid.eq(request.valid & (request.payload.channel == channel)),
            ]
        m.d.comb += [
            request.ready.eq(
                Array([master.i.ready for master in masters])[request.payload.channel]
            ),
            *(getattr(self, name).eq(getattr(control, name))
              for name in ("busy", "stalled", "hungry", "outside")),
            self.idle.eq(~control.busy & Cat(master.idle for master in masters).all()),
            self.error.eq(Cat(master.error for master in masters)),
            self.requested.eq(request.payload.channel),
        ]
        return m
