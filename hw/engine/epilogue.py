"""From accumulators to F: the vector's scale, the addend, and where each row goes."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import PAIRS_BITS, log2
from flightllm.hw.engine.job import ROWS_BITS, Job
from flightllm.hw.engine.rows import RowPlaces
from flightllm.hw.engine.size import BLOCK_PAIRS, EngineSize
from flightllm.hw.engine.vectors import VectorWalker
from flightllm.hw.floating import Float16, FloatAdd, FloatMul, HalfToFloat
from flightllm.hw.memory.buffers import READ_LATENCY, read_port, write_port
from flightllm.spec.encoding import float_bits
from flightllm.spec.formats import Second

__all__ = ["Epilogue"]

ONE = float_bits(1.0)
NEGATIVE_ZERO = 1 << 31
"""Adding it changes no float32 number, zeros included."""
MULTIPLY = 2
"""Stage at which results meet their scale; the addend comes from F `READ_LATENCY` after stage 0."""


class Epilogue(wiring.Component):
    """Block by block: for each vector, channel and part of the block one access to F.

    First it reads every vector's scale. Results that have none (emitted values) and addends that
    do not exist pass as what changes nothing: times 1, plus -0.

    Members
    -------
    job, start, base : In, see `RowPlaces`.
    closed : In, a block is in the result memory. freed : Out, its half can be filled again.
    read : Out, results : In, emitted : In, of each channel, see `ChannelArray`.
    f_read, f_write : Out, ports of F.
    done : Out, everything is written; until `start`.
    """

    def __init__(self, size: EngineSize, read_layout: Any) -> None:
        self.size = size
        words = data.ArrayLayout(32, size.out_lanes)
        super().__init__({
            "job": In(Job(size)), "start": In(1), "base": In(PAIRS_BITS),
            "closed": In(1), "freed": Out(1),
            "read": Out(read_layout),
            "results": In(data.ArrayLayout(data.ArrayLayout(words, size.cells), size.channels)),
            "emitted": In(data.ArrayLayout(
                data.ArrayLayout(Float16, size.out_lanes), size.channels
            )),
            "f_read": Out(read_port(size.lanes)),
            "f_write": Out(write_port(size.lanes, 32)),
            "done": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = self.size
        m.submodules.places = self.places = places = RowPlaces(size)
        m.submodules.vectors = self.vectors = VectorWalker(size, 2)
        for name in ("job", "start", "base"):
            m.d.comb += getattr(places, name).eq(getattr(self, name))
        self.scales = self._scales(m)
        self.scaled = Signal()
        self.channel = Signal(range(size.channels))
        self.part = Signal(log2(size.parts))
        self.emitting, self.half, self.busy = Signal(), Signal(), Signal()
        self.credit = Signal(range(self._depth() + 1), init=self._depth())
        issued = self._walk(m)
        self._pipeline(m, issued)
        return m

    def _depth(self) -> int:
        """Results under way, at most: the pipeline's length and what F may keep waiting."""
        return MULTIPLY + self.size.mul + self.size.add + 5

    def _scales(self, m: Module) -> Any:
        """Read each vector's scale into a table; its read port."""
        job, size = self.job, self.size
        m.submodules.scale_table = table = memory.Memory(
            shape=32, depth=max(size.vectors, 2), init=[]
        )
        m.submodules.scale_walker = walker = VectorWalker(size, 1)
        write, self.fetching = table.write_port(), Signal()
        self.fetched, asked = Signal(), Signal(READ_LATENCY)
        index = [Signal.like(walker.index, name=f"index_{k}") for k in range(READ_LATENCY)]
        m.d.comb += [
            walker.n1.eq(job.n1), walker.n2.eq(job.n2), walker.restart.eq(self.start),
            walker.base[0].eq(job.scale),
            walker.stride1[0].eq(job.scale1), walker.stride2[0].eq(job.scale2),
            walker.advance.eq(self.fetching & self.f_read.ready),
            write.en.eq(asked[-1]), write.addr.eq(index[-1]),
            write.data.eq(self.f_read.data[0]),
            self.fetched.eq(~self.fetching & ~asked.any()),
        ]  # fmt: skip
        m.d.sync += asked.eq(Cat(walker.advance, asked)[:READ_LATENCY])
        for k in range(READ_LATENCY):
            m.d.sync += index[k].eq(index[k - 1] if k else walker.index)
        with m.If(self.start):
            m.d.sync += self.fetching.eq(1)
        with m.Elif(walker.advance & walker.last):
            m.d.sync += self.fetching.eq(0)
        self.scale_address = walker.address[0]
        return table.read_port()

    def _walk(self, m: Module) -> Any:
        """One result vector a cycle: (issued, its address, its words)."""
        job, size, vectors = self.job, self.size, self.vectors
        waiting, blocks = Signal(2), Signal(PAIRS_BITS)
        move, issued, wanted = Signal(), Signal(), Signal()
        row, count = Signal(ROWS_BITS + 2), Signal(range(size.out_lanes + 1))
        last_part, last_channel = Signal(), Signal()
        last_vector, block_over, free = Signal(), Signal(), Signal()
        left = Signal(ROWS_BITS + 2)
        has_emit = job.word.second == Second.EMIT
        m.d.comb += [
            vectors.n1.eq(job.n1), vectors.n2.eq(job.n2), vectors.restart.eq(self.start),
            vectors.base.eq(Cat(job.dst, job.add)),
            vectors.stride1.eq(Cat(job.dst1, job.add1)),
            vectors.stride2.eq(Cat(job.dst2, Signal(32))),
            self.places.channel.eq(self.channel),
            row.eq(self.places.row + (self.part << log2(size.out_lanes))),
            left.eq(self.places.limit - row),
            count.eq(Mux(row >= self.places.limit, 0,
                         Mux(left > size.out_lanes, size.out_lanes, left))),
            wanted.eq(count.any()),
            free.eq((self.credit != 0) & (self.f_read.ready | ~self._adds())),
            move.eq(
                self.busy & (waiting != 0) & self.places.ready & self.fetched & (free | ~wanted)
            ),
            issued.eq(move & wanted),
            last_part.eq(self.part == size.parts - 1),
            last_channel.eq(self.channel == size.channels - 1),
            last_vector.eq(Mux(has_emit, self.emitting, vectors.last)),
            block_over.eq(move & last_part & last_channel & last_vector),
            self.freed.eq(block_over),
            self.places.next_block.eq(block_over),
            vectors.advance.eq(move & last_part & last_channel & ~self.emitting),
            self.read.batch.eq(vectors.batch),
            self.read.part.eq(self.part),
            self.read.half.eq(self.half),
            self.scales.addr.eq(vectors.index),
        ]  # fmt: skip
        m.d.comb += [
            self.f_read.valid.eq(
                self.fetching
                | (self._adds() & self.busy & (waiting != 0) & self.places.ready & self.fetched
                   & (self.credit != 0) & wanted)
            ),
            self.f_read.addr.eq(Mux(self.fetching, self.scale_address, vectors.address[1] + row)),
            self.f_read.count.eq(Mux(self.fetching, 1, count)),
        ]  # fmt: skip
        with m.If(move):
            m.d.sync += self.part.eq(Mux(last_part, 0, self.part + 1))
            with m.If(last_part):
                m.d.sync += self.channel.eq(Mux(last_channel, 0, self.channel + 1))
                with m.If(last_channel):
                    m.d.sync += self.emitting.eq(has_emit & ~self.emitting & vectors.last)
        m.d.sync += waiting.eq(waiting + self.closed - block_over)
        with m.If(block_over):
            m.d.sync += [self.half.eq(~self.half), blocks.eq(blocks - 1)]
            with m.If(blocks == 0):
                m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += [
                self.busy.eq(1), self.half.eq(0), waiting.eq(0), self.part.eq(0),
                self.channel.eq(0), self.emitting.eq(0),
                blocks.eq((job.pairs - 1) >> log2(BLOCK_PAIRS)),
            ]  # fmt: skip
        base = Mux(self.emitting, job.emit, vectors.address[0])
        return issued, base + row, count

    def _adds(self) -> Any:
        return self.job.addend & ~self.emitting

    def _pipeline(self, m: Module, issue: tuple[Any, Any, Any]) -> None:
        """Select, widen, scale, add; then wait for F's write port."""
        size, (issued, address, count) = self.size, issue
        total = MULTIPLY + size.mul + size.add
        place = data.StructLayout({
            "valid": 1, "addr": 32, "count": count.shape(), "adds": 1, "emit": 1,
            "channel": self.channel.shape(), "cell": self.vectors.cell.shape(),
        })  # fmt: skip
        stages = [Signal(place, name=f"place_{k}") for k in range(total + 1)]
        m.d.comb += [
            stages[0].valid.eq(issued), stages[0].addr.eq(address), stages[0].count.eq(count),
            stages[0].adds.eq(self._adds()), stages[0].emit.eq(self.emitting),
            stages[0].channel.eq(self.channel), stages[0].cell.eq(self.vectors.cell),
        ]  # fmt: skip
        m.d.sync += [after.eq(before) for before, after in zip(stages, stages[1:])]
        lanes = self._lanes(m, stages)
        depth = self._depth()
        queued = data.StructLayout({
            "addr": 32, "count": count.shape(), "data": data.ArrayLayout(32, size.out_lanes),
        })  # fmt: skip
        m.submodules.queue = queue = SyncFIFO(
            width=queued.size, depth=depth
        )
        entry, ahead = Signal(queued), Signal(queued)
        m.d.comb += [
            entry.addr.eq(stages[-1].addr), entry.count.eq(stages[-1].count),
            entry.data.eq(Cat(lanes)),
            queue.w_data.eq(entry),
            queue.w_en.eq(stages[-1].valid & (queue.r_rdy | ~self.f_write.ready)),
            queue.r_en.eq(self.f_write.ready),
            self.f_write.valid.eq(queue.r_rdy | stages[-1].valid),
            ahead.eq(Mux(queue.r_rdy, queue.r_data, entry)),
            self.f_write.addr.eq(ahead.addr), self.f_write.count.eq(ahead.count),
            self.f_write.data.as_value().eq(ahead.data),
        ]  # fmt: skip
        written = Signal()
        m.d.comb += [
            written.eq(self.f_write.valid & self.f_write.ready),
            self.done.eq(~self.busy & (self.credit == depth)),
        ]
        m.d.sync += self.credit.eq(self.credit + written - issued)

    def _lanes(self, m: Module, stages: Any) -> list[Any]:
        size = self.size
        first, second = stages[1], stages[MULTIPLY]
        channels = range(size.channels)
        words = Array(
            Array(self.results[c][k].as_value() for k in range(size.cells)) for c in channels
        )
        results = Signal(data.ArrayLayout(32, size.out_lanes))
        emitted = Array(self.emitted[c].as_value() for c in channels)[first.channel]
        scale = Signal(32)
        picked = words[first.channel][first.cell]
        m.d.sync += [
            results.eq(picked),
            scale.eq(Mux(first.emit, ONE, self.scales.data)),
        ]
        lanes = []
        for k in range(size.out_lanes):
            m.submodules[f"widen_{k}"] = widen = HalfToFloat(1)
            m.submodules[f"multiply_{k}"] = multiply = FloatMul(size.mul)
            m.submodules[f"add_{k}"] = add = FloatAdd(size.add)
            addend = Mux(second.adds, self.f_read.data[k], NEGATIVE_ZERO)
            for n in range(size.mul):
                later = Signal(32, name=f"addend_{k}_{n + 1}", reset_less=True)
                m.d.sync += later.eq(addend)
                addend = later
            m.d.comb += [
                widen.en.eq(1), widen.i.eq(emitted.word_select(k, 16)),
                multiply.en.eq(1),
                multiply.i.a.eq(Mux(second.emit, widen.o.as_value(), results[k])),
                multiply.i.b.eq(scale),
                add.en.eq(1), add.i.a.eq(multiply.o), add.i.b.eq(addend),
            ]  # fmt: skip
            lanes.append(add.o)
        return lanes
