"""Takes instructions from MM's and MV's front ends and prepares them for the array."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import (
    CODES_PER_TABLE,
    KGROUPS_BITS,
    PAIRS_BITS,
    Command,
    FormatWord,
    log2,
)
from flightllm.hw.engine.job import ROWS_BITS, Job, take_operands
from flightllm.hw.engine.shares import Divider
from flightllm.hw.engine.size import BLOCK_PAIRS, EngineSize
from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.memory.buffers import READ_LATENCY, read_port
from flightllm.spec.formats import BLOCK, Second
from flightllm.spec.isa import Unit, by_name

__all__ = ["Starter"]

TABLE_WORDS = CODES_PER_TABLE // 4
UNITS = {"mm": Unit.MM, "mv": Unit.MV}


class Matrix(data.StructLayout):
    """What the decode units must know of an instruction's matrix.

    Members
    -------
    rows, kgroups, first, start, word, table : operands. single : there is one vector.
    """

    def __init__(self) -> None:
        super().__init__({
            "rows": ROWS_BITS, "kgroups": KGROUPS_BITS, "first": ROWS_BITS, "start": ROWS_BITS,
            "word": FormatWord, "table": 32, "single": 1,
        })  # fmt: skip


class Starter(wiring.Component):
    """One instruction at a time, MM's first where both wait.

    A matrix is prepared, which means that its decode units get their commands, before its
    instruction has its tokens: as soon as it is collected, if the other unit has nothing to do.
    Instructions come in program order, which is the order of the matrices in the FIFOs.

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
        self.waiting: dict[str, Signal] = {}
        for name, unit in UNITS.items():
            m.submodules[name] = front = UnitFrontEnd(unit)
            wiring.connect(m, wiring.flipped(getattr(self, f"{name}_queue")), front.queue)
            wiring.connect(
                m, front.semaphores, wiring.flipped(getattr(self, f"{name}_semaphores"))
            )
            self.fronts[name] = front
            held = Signal(name=f"{name}_held")
            self.waiting[name] = held | front.start
            with m.If(front.start):
                m.d.sync += held.eq(1)
            with m.Elif(front.done):
                m.d.sync += held.eq(0)
        m.d.comb += self.busy.eq(Cat(front.busy for front in self.fronts.values()).any())
        self.matrix = Signal(Matrix())
        self.prepared, self.of_mv = Signal(), Signal()
        self.idle, self.taken = Signal(), Signal()
        self._shares(m)
        self._prepare(m)
        self._run(m)
        return m

    def _prepare(self, m: Module) -> None:
        matrix = self.matrix
        begin = Signal()
        fetched = self._table(m, begin)
        m.d.sync += self.pending.eq(self.pending & ~self.accepted)
        with m.FSM(name="prepare"):
            with m.State("idle"):
                self._choose(m)
            with m.State("divide"):
                m.d.comb += begin.eq(1)
                m.d.sync += [
                    self.shares.base.eq(self.units.quotient),
                    self.shares.extra.eq(self.units.remainder),
                    self.shares.offset.eq(Mux(matrix.word.cyclic, self.turns.remainder, 0)),
                ]
                m.next = "command"
                with m.If(matrix.word.table):
                    m.next = "table"
            with m.State("table"), m.If(fetched):
                m.next = "command"
            with m.State("command"):
                m.d.comb += self.offered.eq(~self.empty)
                m.d.sync += [self.pending.eq(self.offered & ~self.accepted), self.prepared.eq(1)]
                m.next = "held"
            with m.State("held"):
                with m.If(self.taken):
                    m.d.sync += self.prepared.eq(0)
                with m.If(~self.prepared & ~self.pending.any()):
                    m.next = "idle"

    def _choose(self, m: Module) -> None:
        """Prepare what has its tokens, else what is collected."""
        for coming in (True, False):
            for name, front in reversed(self.fronts.items()):
                others = [other.idle for key, other in self.fronts.items() if key != name]
                ready = front.complete & Cat(others).all() if coming else (
                    self.idle & self.waiting[name]
                )
                with m.If(ready & self._has_matrix(name, coming)):
                    self._take_matrix(m, name, coming)

    def _has_matrix(self, name: str, coming: bool = False) -> Any:
        """The unit's instruction, or its next one, takes a matrix."""
        front, linear = self.fronts[name], by_name(f"{name}.linear")
        function = front.next_function if coming else front.function
        return (function == linear.function) & (front.operand(linear.name, "rows", coming) != 0)

    def _take_matrix(self, m: Module, name: str, coming: bool) -> None:
        front, kind = self.fronts[name], by_name(f"{name}.linear")
        matrix = self.matrix

        def operand(field: str) -> Any:
            return front.operand(kind.name, field, coming)

        single = operand("n2") == 1
        if name == "mm":
            single = single & (operand("n1") == 1)
        m.d.sync += [
            getattr(matrix, field).eq(operand(field))
            for field in ("rows", "kgroups", "first", "start", "table")
        ]
        m.d.sync += [
            matrix.word.eq(operand("fmt")), self.of_mv.eq(name == "mv"),
            matrix.single.eq(single if self.size.twin else 0),
        ]  # fmt: skip
        m.next = "divide"

    def _run(self, m: Module) -> None:
        ended, current = Signal(), Signal()  # current: MV's
        with m.FSM(name="run"):
            with m.State("idle"):
                m.d.comb += self.idle.eq(1)
                for name in reversed(self.fronts):
                    mine = self.prepared & (self.of_mv == (name == "mv"))
                    with m.If(self.waiting[name] & ~self._has_matrix(name)):
                        m.d.sync += current.eq(name == "mv")
                        m.next = "nothing"
                    with m.Elif(self.waiting[name] & mine):
                        self._take(m, name)
                        m.d.sync += current.eq(name == "mv")
                        m.next = "start"
            with m.State("nothing"):
                m.d.comb += ended.eq(1)
                m.next = "idle"
            with m.State("start"):
                m.d.comb += self.start.eq(1)
                m.next = "settle"
            with m.State("settle"):  # `done` is the last instruction's until now
                m.next = "run"
            with m.State("run"), m.If(self.done):
                m.d.comb += ended.eq(1)
                m.next = "idle"
        for name, front in self.fronts.items():
            m.d.comb += front.done.eq(ended & (current == (name == "mv")))
        count = Signal(2 * len(self.job.n1))
        m.d.comb += [
            count.eq(self.job.n1 * self.job.n2),
            self.fault.eq(self.start & ((count == 0) | (count > self.size.vectors))),
        ]

    def _take(self, m: Module, name: str) -> None:
        """Run the instruction whose matrix is prepared."""
        job, shares, cyclic = self.job, self.shares, self.matrix.word.cyclic
        take_operands(m, job, self.fronts[name], f"{name}.linear")
        most = shares.base + shares.extra.any()
        m.d.comb += self.taken.eq(1)
        m.d.sync += [
            self.base.eq(shares.base), job.extra.eq(shares.extra), job.offset.eq(shares.offset),
            job.pairs.eq(Mux(cyclic, most << log2(BLOCK // 2), most)),
            job.twin.eq(self.matrix.single),
            self.has_last.eq(Mux(shares.extra == 0, -1, self.more)),
        ]

    def _unit_count(self) -> Any:
        """Pairs of rows, or chunks of a cyclic matrix."""
        cyclic = self.matrix.word.cyclic
        return (self.matrix.rows + Mux(cyclic, BLOCK - 1, 1)) >> Mux(cyclic, log2(BLOCK), 1)

    def _shares(self, m: Module) -> None:
        """Each channel's part, in the terms of its decode unit."""
        size, matrix = self.size, self.matrix
        channels = range(size.channels)
        m.submodules.units = self.units = Divider(size.channels)
        m.submodules.turns = self.turns = Divider(size.channels)
        self.shares = Signal(data.StructLayout({
            "base": PAIRS_BITS, "extra": channels, "offset": channels,
        }))  # fmt: skip
        self.pending, self.empty = Signal(size.channels), Signal(size.channels)
        self.more = Signal(size.channels)
        self.table = Signal(8 * CODES_PER_TABLE)
        self.table_words = [Signal(32, name=f"table_{k}") for k in range(TABLE_WORDS)]
        self.offered, self.accepted = Signal(size.channels), Signal(size.channels)
        common = self.shares.base & -BLOCK_PAIRS  # pairs in blocks that all channels have whole
        m.d.comb += [
            self.units.i.eq(self._unit_count()), self.turns.i.eq(matrix.first + matrix.start),
        ]  # fmt: skip
        for c, command in enumerate(self.commands):
            turn = Signal(range(2 * size.channels), name=f"turn_{c}")
            units = Signal(PAIRS_BITS, name=f"units_{c}")
            offset = self.shares.offset
            m.d.comb += [
                turn.eq(Mux(offset > c, c + size.channels, c) - offset),
                self.more[c].eq(turn < self.shares.extra),
                units.eq(self.shares.base + self.more[c]),
                self.empty[c].eq(units == 0),
                command.valid.eq(self.pending[c] | self.offered[c]),
                self.accepted[c].eq(command.valid & command.ready),
                command.payload.word.eq(matrix.word),
                command.payload.sums.eq(
                    (matrix.word.second == Second.MINIMUM) & matrix.word.kept.any()
                ),
                command.payload.twin.eq(matrix.single),
                command.payload.singles.eq(units - common),
                command.payload.pairs.eq(
                    Mux(matrix.word.cyclic, units << log2(BLOCK // 2), units)
                ),
                command.payload.kgroups.eq(matrix.kgroups),
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
            self.params.addr.eq(self.matrix.table + asked),
            self.params.count.eq(1),
            taken.eq(self.params.valid & self.params.ready),
            self.table.eq(Cat(self.table_words)),
        ]
        m.d.sync += [on_way.eq(Cat(taken, on_way)), asked.eq(asked + taken)]
        with m.If(on_way[-1]):
            m.d.sync += [words[came].eq(self.params.data[0]), came.eq(came + 1)]
        with m.If(begin & self.matrix.word.table):
            m.d.sync += [asked.eq(0), came.eq(0)]
        return came == TABLE_WORDS
