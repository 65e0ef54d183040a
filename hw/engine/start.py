"""Takes instructions from MM's and MV's front ends and prepares them for the array."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import CODES_PER_TABLE, PAIRS_BITS, Command, log2
from flightllm.hw.engine.job import Job, take_operands
from flightllm.hw.engine.shares import Divider
from flightllm.hw.engine.size import BLOCK_PAIRS, EngineSize
from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.memory.buffers import READ_LATENCY, read_port
from flightllm.spec.formats import BLOCK, Second
from flightllm.spec.isa import Unit, by_name

__all__ = ["Starter"]

TABLE_WORDS = CODES_PER_TABLE // 4
UNITS = {"mm": Unit.MM, "mv": Unit.MV}


class Starter(wiring.Component):
    """One instruction at a time, MM's first where both wait.

    Members
    -------
    mm_queue, mv_queue : In, words from the dispatcher. mm_semaphores, mv_semaphores : Out.
    params : Out, a port of the parameter memory.
    commands : Out, to each channel's decode unit.
    job : Out, base : Out, see `RowPlaces`; has_last : Out, see `Sequencer`.
    start : Out, a pulse: the array begins. done : In, everything is written.
    fault : Out, a pulse: no vectors, or more than the engine has.
    """

    def __init__(self, size: EngineSize) -> None:
        self.size = size
        ports: dict[str, Any] = {}
        for name in UNITS:
            ports[f"{name}_queue"] = In(stream.Signature(32))
            ports[f"{name}_semaphores"] = Out(semaphore_signature)
        super().__init__(ports | {
            "params": Out(read_port(1)),
            "commands": Out(stream.Signature(Command)).array(size.channels),
            "job": Out(Job(size)), "base": Out(PAIRS_BITS), "has_last": Out(size.channels),
            "start": Out(1), "done": In(1), "fault": Out(1), "busy": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self.fronts: dict[str, UnitFrontEnd] = {}
        waiting: dict[str, Signal] = {}
        for name, unit in UNITS.items():
            m.submodules[name] = front = UnitFrontEnd(unit)
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_queue")), front.queue)
            wiring.connect(
                m, front.semaphores, wiring.flipped(getattr(self, f"{name}_semaphores"))
            )
            self.fronts[name], waiting[name] = front, Signal(name=f"{name}_waiting")
            with m.If(front.start):
                m.d.sync += waiting[name].eq(1)
            with m.Elif(front.done):
                m.d.sync += waiting[name].eq(0)
        m.d.comb += self.busy.eq(Cat(front.busy for front in self.fronts.values()).any())
        self._shares(m)
        self._states(m, waiting)
        return m

    def _states(self, m: Module, waiting: dict[str, Signal]) -> None:
        job = self.job
        begin, ended = Signal(), Signal()
        current = Signal()  # MV's
        fetched = self._table(m, begin)
        m.d.sync += self.pending.eq(self.pending & ~self.accepted)
        with m.FSM():
            with m.State("idle"):
                for name, signal in reversed(waiting.items()):
                    with m.If(signal | self.fronts[name].start):
                        self._take(m, name, current)
            with m.State("nothing"):
                m.d.comb += ended.eq(1)
                m.next = "idle"
            with m.State("divide"):
                most = self.units.quotient + self.units.remainder.any()
                m.d.comb += [
                    begin.eq(1),
                    self.units.i.eq(self._unit_count(job)),
                    self.turns.i.eq(job.first + job.start),
                ]
                m.d.sync += [
                    job.twin.eq((job.n1 == 1) & (job.n2 == 1) if self.size.twin else 0),
                    self.base.eq(self.units.quotient), job.extra.eq(self.units.remainder),
                    job.offset.eq(Mux(job.word.cyclic, self.turns.remainder, 0)),
                    job.pairs.eq(Mux(job.word.cyclic, most << log2(BLOCK // 2), most)),
                ]
                m.next = "start"
            with m.State("start"):
                m.d.comb += [self.start.eq(1), self.offered.eq(Mux(job.word.table, 0, ~self.empty))]
                m.d.sync += self.pending.eq(self.offered & ~self.accepted)
                m.next = "settle"
                with m.If(job.word.table):
                    m.next = "table"
            with m.State("table"), m.If(fetched):
                m.d.comb += self.offered.eq(~self.empty)
                m.d.sync += self.pending.eq(self.offered & ~self.accepted)
                m.next = "run"
            with m.State("settle"):  # `done` is the last instruction's until now
                m.next = "run"
            with m.State("run"), m.If(self.done):
                m.d.comb += ended.eq(1)
                m.next = "idle"
        for name, front in self.fronts.items():
            m.d.comb += front.done.eq(ended & (current == (name == "mv")))
        m.d.comb += self.fault.eq(
            self.start & ((self.count == 0) | (self.count > self.size.vectors))
        )

    def _take(self, m: Module, name: str, current: Signal) -> None:
        front = self.fronts[name]
        linear = by_name(f"{name}.linear")
        take_operands(m, self.job, front, linear.name)
        m.d.sync += current.eq(name == "mv")
        rows = front.operand(linear.name, "rows")
        with m.If((front.function == linear.function) & (rows != 0)):
            m.next = "divide"
        with m.Else():
            m.next = "nothing"

    def _unit_count(self, job: Any) -> Any:
        """Pairs of rows, or chunks of a cyclic matrix."""
        up = Mux(job.word.cyclic, BLOCK - 1, 1)
        return (job.rows + up) >> Mux(job.word.cyclic, log2(BLOCK), 1)

    def _shares(self, m: Module) -> None:
        """Each channel's part, in the terms of its decode unit."""
        size, job = self.size, self.job
        m.submodules.units = self.units = Divider(size.channels)
        m.submodules.turns = self.turns = Divider(size.channels)
        self.pending, self.empty = Signal(size.channels), Signal(size.channels)
        self.table = Signal(8 * CODES_PER_TABLE)
        self.table_words = [Signal(32, name=f"table_{k}") for k in range(TABLE_WORDS)]
        self.offered, self.accepted = Signal(size.channels), Signal(size.channels)
        self.count = Signal(2 * len(job.n1))
        common = self.base & -BLOCK_PAIRS  # pairs in blocks that all channels have whole
        m.d.comb += self.count.eq(job.n1 * job.n2)
        for c, command in enumerate(self.commands):
            turn = Signal(range(2 * size.channels), name=f"turn_{c}")
            more = Signal(name=f"more_{c}")
            units = Signal(PAIRS_BITS, name=f"units_{c}")
            m.d.comb += [
                turn.eq(Mux(job.offset > c, c + size.channels, c) - job.offset),
                more.eq(turn < job.extra),
                units.eq(self.base + more),
                self.has_last[c].eq(more | (job.extra == 0)),
                self.empty[c].eq(units == 0),
                command.valid.eq(self.pending[c] | self.offered[c]),
                self.accepted[c].eq(command.valid & command.ready),
                command.payload.word.eq(job.word),
                command.payload.sums.eq(
                    (job.word.second == Second.MINIMUM) & job.word.kept.any()
                ),
                command.payload.twin.eq(job.twin),
                command.payload.singles.eq(units - common),
                command.payload.pairs.eq(
                    Mux(job.word.cyclic, units << log2(BLOCK // 2), units)
                ),
                command.payload.kgroups.eq(job.kgroups),
                command.payload.table.eq(self.table),
            ]

    def _table(self, m: Module, begin: Signal) -> Signal:
        """Fetch the code table; set when it is there."""
        asked = Signal(range(TABLE_WORDS + 1), init=TABLE_WORDS)
        came = Signal(range(TABLE_WORDS + 1))
        on_way = Signal(READ_LATENCY)
        taken = Signal()
        words = Array(self.table_words)
        m.d.comb += [
            self.params.valid.eq(asked != TABLE_WORDS),
            self.params.addr.eq(self.job.table + asked),
            self.params.count.eq(1),
            taken.eq(self.params.valid & self.params.ready),
            self.table.eq(Cat(self.table_words)),
        ]
        m.d.sync += [on_way.eq(Cat(taken, on_way)), asked.eq(asked + taken)]
        with m.If(on_way[-1]):
            m.d.sync += [words[came].eq(self.params.data[0]), came.eq(came + 1)]
        with m.If(begin & self.job.word.table):
            m.d.sync += [asked.eq(0), came.eq(0)]
        return came == TABLE_WORDS
