"""ST's pipeline: reads a job's data from F or A, lays them out as a beat, hands it to a channel.

Commands go to the masters ahead of their beats, so that a transfer of one beat can begin every
cycle although a command takes three cycles through its master.
"""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.half import FloatToHalf
from flightllm.hw.memory.buffers import READ_LATENCY, read_port, window_port
from flightllm.hw.memory.store_job import UNIT, JobKind, StoreJob
from flightllm.hw.memory.write_master import WriteBeat, WriteCommand

__all__ = ["StorePipe"]

BEATS = 8


class StorePipe(wiring.Component):
    """One job a cycle; a beat leaves four cycles after its job was taken.

    A job is taken only when the FIFO of finished beats has room for its beat, so that the pipeline
    behind the buffers never stops.

    Parameters
    ----------
    channels, beat_bytes, channel_bytes : of the core. lanes : words of an access to F.
    window : bytes of a read of A, at least a beat.

    Members
    -------
    jobs : In. f_read, a_read : Out, ports of the buffers.
    commands, beats : Out, streams for a write master each.
    empty : Out, no beat is under way.
    outside : Out, a pulse: a transfer outside the channel is dropped; `empty` never comes again.
    requested : Out, the channel of that transfer.
    """

    def __init__(self, channels: int, beat_bytes: int, channel_bytes: int, lanes: int,
                 window: int) -> None:  # fmt: skip
        if window < beat_bytes:
            raise ValueError(f"StorePipe window must be at least a beat, not {window!r}")
        self._channels, self._beat, self._lanes = channels, beat_bytes, lanes
        self._limit = channel_bytes // UNIT
        self.address_bits = address_bits = (channel_bytes - 1).bit_length()
        self._job = StoreJob(channels, beat_bytes, lanes)
        self._command = WriteCommand(beat_bytes, address_bits)
        channel = self._job.members["channel"]
        self._beats = data.StructLayout({"payload": WriteBeat(beat_bytes), "channel": channel})
        self._orders = data.StructLayout({"payload": self._command, "channel": channel})
        super().__init__({
            "jobs": In(stream.Signature(self._job)),
            "f_read": Out(read_port(lanes)),
            "a_read": Out(window_port(window)),
            "commands": Out(stream.Signature(self._command)).array(channels),
            "beats": Out(stream.Signature(WriteBeat(beat_bytes))).array(channels),
            "empty": Out(1),
            "outside": Out(1),
            "requested": Out(range(max(channels, 2))),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        # A beat leaves behind its command, so both FIFOs have room where that of beats has.
        m.submodules.done = done = SyncFIFO(width=self._beats.size, depth=BEATS)
        m.submodules.orders = orders = SyncFIFO(width=self._orders.size, depth=BEATS)
        room = Signal(range(BEATS + 1), init=BEATS)
        valid, job = self._read(m, room != 0)
        new, order, begin = Signal(self._beats), Signal(self._orders), Signal()
        size = (self._beat // UNIT).bit_length() - 1
        end = job.address + (job.beats << size)
        m.d.comb += [
            begin.eq(self._begin(m, valid, job)),
            self.outside.eq(valid & job.whole & begin & (end > self._limit)),
            self.requested.eq(job.channel),
            done.w_en.eq(valid & job.whole & ~self.outside),
            done.w_data.eq(new),
            new.channel.eq(job.channel),
            orders.w_en.eq(done.w_en & begin),
            orders.w_data.eq(order),
            order.channel.eq(job.channel),
            order.payload.address.eq(job.address << (UNIT.bit_length() - 1)),
            order.payload.beats.eq(job.beats),
            self.empty.eq(room == BEATS),
        ]
        taken = self.jobs.valid & self.jobs.ready & self.jobs.payload.whole
        m.d.sync += room.eq(room - taken + (done.r_rdy & done.r_en))
        self._lay_out(m, valid, job, new.payload)
        self._hand_out(m, done, self._beats, self.beats)
        self._hand_out(m, orders, self._orders, self.commands)
        return m

    def _read(self, m: Module, room: Value) -> tuple[Value, Any]:
        """Ask for the job's data; the job in the cycle behind that in which they come."""
        job, f_read, a_read = self.jobs.payload, self.f_read, self.a_read
        from_a = (job.kind == JobKind.KEYS) | (job.kind == JobKind.VALUES)
        m.d.comb += [
            f_read.addr.eq(job.source),
            a_read.addr.eq(job.source),
            f_read.count.eq(job.count),
            f_read.valid.eq(self.jobs.valid & room & ~from_a),
            a_read.valid.eq(self.jobs.valid & room & from_a),
            self.jobs.ready.eq(room & Mux(from_a, a_read.ready, f_read.ready)),
        ]
        valid: Any = self.jobs.valid & self.jobs.ready
        for k in range(READ_LATENCY + 1):
            later_valid = Signal(name=f"valid_{k + 1}")
            later = Signal(self._job, name=f"job_{k + 1}", reset_less=True)
            m.d.sync += [later_valid.eq(valid), later.eq(job)]
            valid, job = later_valid, later
        return valid, job

    def _begin(self, m: Module, valid: Value, job: Any) -> Value:
        """A beat begins a transfer if its first part did."""
        begun = Signal()
        with m.If(valid):
            m.d.sync += begun.eq(~job.whole & (begun | job.begin))
        return begun | job.begin

    def _lay_out(self, m: Module, valid: Value, job: Any, beat: Any) -> None:
        m.submodules.narrow = narrow = FloatToHalf(latency=1)
        words = Signal(32 * min(self._lanes, self._beat // 4), reset_less=True)
        codes = Signal(data.ArrayLayout(8, self._beat), reset_less=True)
        m.d.comb += [narrow.en.eq(1), narrow.i.eq(self.f_read.data[0])]
        m.d.sync += [words.eq(self.f_read.data.as_value()), codes.eq(self.a_read.data.as_value())]
        half = narrow.o.as_value()
        with m.Switch(job.kind):
            with m.Case(JobKind.WORDS):
                self._words(m, valid, job, words, beat)
            with m.Case(JobKind.SCALE):
                m.d.comb += [
                    beat.bytes.eq(half.replicate(self._beat // 2)),
                    beat.strobe.eq(3 << job.place),
                ]
            with m.Case(JobKind.KEYS):
                self._keys(m, job, codes, beat)
            with m.Case(JobKind.VALUES):
                self._values(m, job, codes, beat)

    def _words(self, m: Module, valid: Value, job: Any, words: Value, beat: Any) -> None:
        """Words, collected from `parts` reads where F is narrower than a beat."""
        lanes = min(self._lanes, self._beat // 4)
        parts = self._beat // 4 // lanes
        strobe = Cat((lane < job.count).replicate(4) for lane in range(lanes))
        held = SimpleNamespace(bytes=Signal(8 * self._beat), strobe=Signal(self._beat))
        m.d.comb += [beat.bytes.eq(held.bytes), beat.strobe.eq(held.strobe)]
        for part in range(parts):
            with m.If(job.part == part):
                m.d.comb += [
                    beat.bytes.word_select(part, 32 * lanes).eq(words),
                    beat.strobe.word_select(part, 4 * lanes).eq(strobe),
                ]
        with m.If(valid):
            m.d.sync += [
                held.bytes.eq(beat.bytes),
                held.strobe.eq(Mux(job.whole, 0, beat.strobe)),
            ]

    def _keys(self, m: Module, job: Any, codes: Any, beat: Any) -> None:
        """Every second byte, from unit `place` to unit `end`."""
        size = self._beat
        wide = Cat(codes[k // 2] for k in range(size))
        joined = Cat(
            Cat(codes[k // 2 * 2][:4], codes[k // 2 * 2 + 1][:4]) for k in range(size)
        )  # fmt: skip
        packed = Signal(8 * size)
        m.d.comb += packed.eq(Mux(job.narrow, joined, wide))
        with m.Switch(job.place):
            for unit in range(size // UNIT):
                with m.Case(unit):
                    m.d.comb += beat.bytes.eq(packed << (8 * UNIT * unit))
        inside = [(job.place <= unit) & (unit < job.end) for unit in range(size // UNIT)]
        m.d.comb += beat.strobe.eq(Cat(inside[k // UNIT] & (job.odd == k % 2) for k in range(size)))

    def _values(self, m: Module, job: Any, codes: Any, beat: Any) -> None:
        """A pair of rows: two bytes, or two halves of one."""
        wide = Cat(codes[0], codes[1])
        joined = Cat(codes[0][:4], Mux(job.odd, codes[1][:4], 0))
        pattern = Mux(job.narrow, joined.replicate(2), wide)
        m.d.comb += [
            beat.bytes.eq(pattern.replicate(self._beat // 2)),
            beat.strobe.eq(Mux(job.odd & ~job.narrow, 3, 1) << job.place),
        ]

    def _hand_out(self, m: Module, fifo: Any, layout: Any, ports: Any) -> None:
        """The first entry goes to its channel."""
        entry = data.View(layout, fifo.r_data)
        m.d.comb += fifo.r_en.eq(Array([port.ready for port in ports])[entry.channel])
        for channel, port in enumerate(ports):
            m.d.comb += [
                port.payload.eq(entry.payload),
                port.valid.eq(fifo.r_rdy & (entry.channel == channel)),
            ]
