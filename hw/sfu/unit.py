"""The SFU's sequencer: MISC instructions as rows, heads, passes and scalars."""

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.sfu.lanes import Latencies
from flightllm.hw.sfu.passes import Pass, PassKind
from flightllm.hw.sfu.ports import READ_LATENCY, read_signature, write_signature
from flightllm.hw.sfu.reduce import Reducer
from flightllm.hw.sfu.scalar import ScalarProgram, Scalars
from flightllm.hw.sfu.topk import SortedList, zero_merged
from flightllm.hw.sfu.walks import WALKS, Walk
from flightllm.hw.sharing import shared
from flightllm.spec.encoding import float_bits
from flightllm.spec.isa import Unit, by_name
from flightllm.spec.parameters import words_of
from flightllm.spec.timing import sums_at_once

__all__ = ["SpecialFunctionUnit"]

I127, SEVEN, Q127 = float_bits(1 / 127), float_bits(7.0), float_bits(127.0)


def _function(name: str) -> int:
    return by_name(f"misc.{name}").function


def _flag(front: UnitFrontEnd, name: str, flag: str) -> Any:
    return front.flags[by_name(f"misc.{name}").flags.index(flag)]


@shared()
class SpecialFunctionUnit(wiring.Component):
    """Executes MISC.

    Parameters
    ----------
    lanes : elements a cycle, 1 to 16; ports have 2 words at least. top_k : longest list of TOPK.
    cores : parts of a maximum.
    add, mul : latencies of the float units.

    Members
    -------
    queue : In, instruction words. semaphores : Out. read_x, read_y, f_write, a_write : Out, ports.
    busy : Out.
    """

    def __init__(self, lanes: int, top_k: int, cores: int, add: int = 3, mul: int = 3) -> None:
        words = words_of(lanes)
        if cores > words:
            raise ValueError(f"SFU: {cores} cores' maxima do not fit {words} words")
        self.lanes, self.words, self.top_k, self.cores = lanes, words, top_k, cores
        self.add, self.mul = add, mul
        times = Latencies(add, mul)
        # A softmax's inverse is ready before its first exponential wants it.
        assert READ_LATENCY + add + times.exp + mul > times.recip + mul + 6
        super().__init__(
            {
                "queue": In(stream.Signature(32)),
                "semaphores": Out(semaphore_signature),
                "read_x": Out(read_signature(words)),
                "read_y": Out(read_signature(words)),
                "f_write": Out(write_signature(words, 32)),
                "a_write": Out(write_signature(words, 8)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front = self.front = front = UnitFrontEnd(Unit.MISC)
        m.submodules.vector = self.vector = vector = Pass(self.lanes, self.add, self.mul)
        m.submodules.scalars = self.scalars = Scalars(self.add, self.mul)
        m.submodules.reducer = self.reducer = Reducer(
            self.add, sums_at_once(self.lanes)
        )
        m.submodules.top = self.top = SortedList(self.top_k)
        wiring.connect(m, wiring.flipped(self.queue), front.queue)
        wiring.connect(m, front.semaphores, wiring.flipped(self.semaphores))
        m.d.comb += self.busy.eq(front.busy)
        for name in ("read_x", "read_y"):
            ours, theirs = getattr(self, name), getattr(vector, name)
            m.d.comb += [
                ours.en.eq(theirs.en), ours.addr.eq(theirs.addr), theirs.data.eq(ours.data),
            ]  # fmt: skip
        for name in ("f_write", "a_write"):
            ours, theirs = getattr(self, name), getattr(vector, name)
            m.d.comb += [
                ours.en.eq(theirs.en), ours.addr.eq(theirs.addr), ours.count.eq(theirs.count),
                ours.data.eq(theirs.data),
            ]  # fmt: skip
        self.kind = Signal(PassKind)
        self.wait = Signal(range(READ_LATENCY + 2))
        self.index = Signal(32)
        self.known = Signal(32)  # what the inverse of the next job is to be made of
        self.inverse = Signal(32)  # of the pass that runs
        self.read, self.write, self.word = (Walk(name, front) for name in WALKS)
        # A job's maximum waits for the scalars; its inverse waits for its pass; a sum is complete.
        self.waiting, self.ready, self.summed = Signal(), Signal(), Signal()
        self.resting = Signal()  # the scalars have nothing to do
        self.kept, self.total = Signal(32), Signal(32)  # of the job whose sum is complete
        self.soft = Signal()  # a job was scanned
        m.d.comb += vector.kind.eq(self.kind)
        self._settings(m)
        self._sequence(m)
        self._tail(m)
        return m

    def _op(self, name: str, operand: str) -> Any:
        return self.front.operand(f"misc.{name}", operand)

    # ------------------------------------------------------------------------ what a pass gets

    def _settings(self, m: Module) -> None:
        """Operands of the vector pass and of the scalars, by function."""
        front, vector, scalars = self.front, self.vector, self.scalars
        at = self.read.at
        m.d.comb += [
            vector.x.eq(at["x"]), vector.y.eq(at["y"]), vector.dst.eq(self.write.at["dst"]),
            vector.inverse.eq(self.inverse), vector.factor.eq(vector.highest),
            vector.half.eq(Mux(self.kind == PassKind.ROPE, self.read.parity, self.write.parity)),
            scalars.qmax.eq(Q127), scalars.alpha.eq(I127), scalars.total.eq(self.total),
        ]  # fmt: skip
        with m.Switch(front.function):
            for name in ("add", "act"):
                with m.Case(_function(name)):
                    m.d.comb += vector.n.eq(self._op(name, "n"))
            with m.Case(_function("stat")):
                norm = _flag(front, "stat", "norm")
                m.d.comb += [
                    vector.n.eq(self._op("stat", "n")), vector.unit_y.eq(~norm),
                    vector.sums.eq(norm),
                ]  # fmt: skip
            with m.Case(_function("quant")):
                norm = _flag(front, "quant", "norm")
                m.d.comb += [
                    vector.n.eq(self._op("quant", "n")), vector.pad.eq(self._op("quant", "pad")),
                    vector.unit_y.eq(~norm),
                    scalars.alpha.eq(self._op("quant", "alpha")),
                    scalars.inv_n.eq(self._op("quant", "inv_n")),
                    scalars.eps.eq(self._op("quant", "eps")),
                ]  # fmt: skip
            with m.Case(_function("headq")):
                nibble, size = _flag(front, "headq", "nibble"), self._op("headq", "size")
                m.d.comb += [
                    vector.n.eq(size), vector.pad.eq(self._op("headq", "pad")),
                    vector.z.eq(at["y"] + (size >> 1)),
                    vector.turn.eq(_flag(front, "headq", "rope")),
                    vector.narrow.eq(nibble), scalars.qmax.eq(Mux(nibble, SEVEN, Q127)),
                    scalars.alpha.eq(self._op("headq", "alpha")),
                    scalars.half.eq(_flag(front, "headq", "half")),
                ]  # fmt: skip
            with m.Case(_function("softmax")):
                base, pos = self._op("softmax", "base"), self._op("softmax", "pos")
                length = self._op("softmax", "length")
                m.d.comb += [
                    vector.n.eq(length), vector.pad.eq((length + 31) & ~31),
                    vector.high.eq(pos + self.read.row - base),
                    vector.low.eq(vector.high - self._op("softmax", "window") + 1),
                    vector.way.eq(base >> 4),
                ]  # fmt: skip

    # ------------------------------------------------------------------------ the vector passes

    def _sequence(self, m: Module) -> None:
        front, vector, reducer = self.front, self.vector, self.reducer
        function = front.function
        m.d.comb += [
            reducer.block[0].eq(
                Mux(function == _function("quant"), self.read_x.data[0], vector.block)
            ),
            *(reducer.block[k].eq(self.read_x.data[k]) for k in range(1, reducer.blocks)),
            reducer.way.eq(vector.block_way), reducer.count.eq(vector.block_valid),
        ]  # fmt: skip
        listed = (function == _function("topk")) | (function == _function("merge"))
        with m.FSM():
            with m.State("idle"), m.If(front.start):
                for walk in (self.read, self.write, self.word):
                    walk.begin(m)
                m.d.comb += [reducer.clear.eq(1), self.top.clear.eq(1)]
                m.d.sync += self.index.eq(0)
                m.next = "next"
                with m.If(function == _function("nop")):
                    m.next = "end"
                with m.Elif(listed):
                    m.next = "list"
            with m.State("end"):
                m.d.comb += front.done.eq(1)
                m.next = "idle"
            with m.State("next"):
                self._next(m)
            with m.State("pass"), m.If(vector.done):
                self._passed(m)
            with m.State("amax"):
                self._put(m, vector.amax)
                m.next = "next"
            with m.State("sum"), m.If(~self.summed & reducer.idle):
                # The job before has given its sum away; nothing of this one's came in yet.
                m.d.comb += reducer.finish.eq(1)
                m.d.sync += self.kept.eq(self.known)
                m.next = "next"
            self._quant_inputs(m)
            self._lists(m)

    def _run(self, m: Module, kind: Any) -> None:
        """Start a pass; its results are of this kind."""
        m.d.comb += self.vector.start.eq(1)
        m.d.sync += self.kind.eq(kind)
        m.d.comb += self.vector.kind.eq(kind)
        m.next = "pass"

    def _next(self, m: Module) -> None:
        """What can be done next, the lanes being free; done when no job is left anywhere."""
        function, front = self.front.function, self.front
        rest = self.word.over & self.resting
        with m.Switch(function):
            with m.Case(_function("add")):
                self._or_end(m, self.read.over, lambda: self._run(m, PassKind.ADD))
            with m.Case(_function("stat")):
                self._or_end(m, self.read.over, lambda: self._run(m, PassKind.STAT))
            with m.Case(_function("act")):
                silu, relu = _flag(front, "act", "silu"), _flag(front, "act", "relu")
                plain = Mux(relu, PassKind.RELU, PassKind.GELU)
                kind = Mux(silu, PassKind.SILU, plain)
                self._or_end(m, self.read.over, lambda: self._run(m, kind))
            with m.Case(_function("headq")):
                with m.If(self.ready):
                    self._take_inverse(m)
                    self._run(m, PassKind.LEVELS)
                with m.Elif(~self.read.over & ~self.waiting):
                    self._run(m, PassKind.ROPE)
                with m.Elif(rest):
                    m.next = "end"
            with m.Case(_function("softmax")):
                with m.If(self.soft & ~self.waiting):  # the inverse will be there in time
                    self._run(m, PassKind.SOFT)
                with m.Elif(~self.soft & ~self.read.over):
                    self._run(m, PassKind.SCAN)
                with m.Elif(rest):
                    m.next = "end"
            with m.Case(_function("quant")):
                with m.If(self.ready):
                    self._take_inverse(m)
                    self._run(m, PassKind.QUANT)
                with m.Elif(~self.read.over & ~self.waiting & self.resting):
                    m.next = "parts"
                with m.Elif(rest):
                    m.next = "end"

    def _or_end(self, m: Module, over: Any, otherwise: Any) -> None:
        with m.If(over):
            m.d.comb += self.front.done.eq(1)
            m.next = "idle"
        with m.Else():
            otherwise()

    def _take_inverse(self, m: Module) -> None:
        m.d.sync += [self.inverse.eq(self.scalars.inverse), self.ready.eq(0)]

    def _passed(self, m: Module) -> None:
        """A pass is over: its job goes on."""
        m.next = "next"
        vector = self.vector
        with m.Switch(self.kind):
            with m.Case(PassKind.ADD):
                for walk in (self.read, self.write):
                    walk.advance(m)
            with m.Case(PassKind.STAT, PassKind.SILU, PassKind.RELU, PassKind.GELU):
                for walk in (self.read, self.write):
                    walk.advance(m)
                m.next = "amax"
            with m.Case(PassKind.ROPE):
                self.read.advance(m)
                m.d.sync += [self.known.eq(vector.amax), self.waiting.eq(1)]
            with m.Case(PassKind.LEVELS):
                self.write.advance(m)
            with m.Case(PassKind.QUANT):
                for walk in (self.read, self.write):
                    walk.advance(m)
            with m.Case(PassKind.SCAN):
                m.d.sync += [
                    self.known.eq(vector.highest_y), self.waiting.eq(1), self.soft.eq(1),
                ]  # fmt: skip
            with m.Case(PassKind.SOFT):
                for walk in (self.read, self.write):
                    walk.advance(m)
                m.d.sync += self.soft.eq(0)
                m.next = "sum"

    def _put(self, m: Module, value: Any) -> None:
        """Write a job's word to F; no pass that writes to F runs meanwhile."""
        f = self.f_write
        m.d.comb += [
            f.en.eq(1), f.addr.eq(self.word.at["word"]), f.count.eq(1), f.data[0].eq(value),
        ]  # fmt: skip
        self.word.advance(m)

    def _quant_inputs(self, m: Module) -> None:
        """The cores' maxima, and the block sums into the accumulators."""
        parts, blocks = self._op("quant", "parts"), self._op("quant", "blocks")
        norm = _flag(self.front, "quant", "norm")
        with m.State("parts"):
            m.d.sync += self.index.eq(self.index + 1)
            m.d.comb += [
                self.read_x.en.eq(self.index == 0), self.read_x.addr.eq(self.read.at["amax"]),
            ]  # fmt: skip
            with m.If(self.index == READ_LATENCY):
                largest = self.read_x.data[0]
                for k in range(1, self.cores):
                    word = Mux(k < parts, self.read_x.data[k], 0)
                    largest = Mux(word > largest, word, largest)
                m.d.sync += [self.known.eq(largest), self.waiting.eq(1), self.index.eq(0)]
                m.next = "next"
                with m.If(norm):
                    m.next = "sums"
        with m.State("sums"):
            step = self.reducer.blocks
            arrived = self.index - READ_LATENCY * step
            left = blocks - arrived
            there = (self.index >= READ_LATENCY * step) & (arrived < blocks)
            m.d.sync += self.index.eq(self.index + step)
            m.d.comb += [
                self.read_x.en.eq(self.index < blocks),
                self.read_x.addr.eq(self.read.at["sums"] + self.index),
                self.reducer.count.eq(Mux(there, Mux(left[:32] < step, left, step), 0)),
                self.reducer.way.eq(arrived[:4]),
            ]  # fmt: skip
            with m.If((self.index >= READ_LATENCY * step) & (arrived[:32] >= blocks)):
                m.d.sync += self.index.eq(0)
                m.next = "next"
                m.d.comb += self.reducer.finish.eq(1)

    # ------------------------------------------------------------------------ the scalars

    def _tail(self, m: Module) -> None:
        """Scalars of one job at a time, while the lanes are at others; each ends with a word."""
        front, scalars, reducer = self.front, self.scalars, self.reducer
        function = front.function
        is_soft = function == _function("softmax")
        norm = (function == _function("quant")) & _flag(front, "quant", "norm")
        amax = Signal(32)
        program = Signal(ScalarProgram)
        m.d.comb += [scalars.amax.eq(amax), scalars.program.eq(program)]
        emptied = Signal()
        m.d.sync += emptied.eq(reducer.done)
        with m.If(emptied):
            m.d.comb += reducer.clear.eq(1)
        with m.If(reducer.done):
            m.d.sync += [self.total.eq(reducer.total), self.summed.eq(1)]
        with m.FSM() as tail:
            m.d.comb += self.resting.eq(
                tail.ongoing("rest") & ~self.waiting & ~self.summed & reducer.idle
            )
            with m.State("rest"):
                with m.If(self.waiting & ~self.ready):
                    m.d.sync += [
                        amax.eq(self.known), self.waiting.eq(0), program.eq(ScalarProgram.QUANT),
                    ]  # fmt: skip
                    m.next = "start"
                with m.Elif(self.summed & is_soft):
                    m.d.sync += [
                        amax.eq(self.kept), program.eq(ScalarProgram.SOFT),
                    ]  # fmt: skip
                    m.next = "start"
            with m.State("start"):
                m.d.comb += scalars.start.eq(1)
                m.next = "run"
            with m.State("run"), m.If(scalars.done):
                m.next = "put"
                with m.If(program == ScalarProgram.QUANT):
                    with m.If(is_soft):
                        m.next = "rest"
                    with m.Elif(norm):
                        m.next = "norm"
            with m.State("norm"), m.If(self.summed):
                m.d.sync += program.eq(ScalarProgram.NORM)
                m.next = "start"
            with m.State("put"):
                self._put(m, scalars.scale)
                m.d.sync += self.summed.eq(0)
                m.next = "rest"
        fresh = Signal()  # the inverse of a softmax, whose pass runs already, is there
        m.d.sync += fresh.eq(scalars.ready & is_soft)
        with m.If(scalars.ready & ~is_soft):
            m.d.sync += self.ready.eq(1)
        with m.If(fresh):
            m.d.sync += self.inverse.eq(scalars.inverse)

    # ------------------------------------------------------------------------ lists

    def _lists(self, m: Module) -> None:
        """topk and merge: fetch a few words, insert those that pass the bar, write the list."""
        merging = self.front.function == _function("merge")
        held = Signal(32 * self.words)
        words = [held.word_select(k, 32) for k in range(self.words)]
        lane, pair = Signal(range(self.words + 1)), Signal(32)
        part, base = Signal(32), Signal(32)
        k = Mux(merging, self._op("merge", "k"), self._op("topk", "k"))
        count = Mux(merging, k, self._op("topk", "n"))
        step = Mux(merging, self.words // 2, self.words)
        top = self.top
        with m.State("list"):
            m.d.sync += [part.eq(0), pair.eq(0), base.eq(
                Mux(merging, self._op("merge", "src"), self._op("topk", "src")))]  # fmt: skip
            m.next = "list_fetch"
        with m.State("list_fetch"):
            m.d.comb += [
                self.read_x.en.eq(self.index < count),
                self.read_x.addr.eq(base + Mux(merging, self.index << 1, self.index)),
            ]
            m.d.sync += [self.wait.eq(READ_LATENCY - 1), lane.eq(0)]
            m.next = "list_wait"
            with m.If(self.index >= count):
                m.d.sync += self.index.eq(0)
                m.next = "list_write"
                with m.If(merging & (part + 1 < self._op("merge", "parts"))):
                    m.d.sync += [part.eq(part + 1), base.eq(base + self._op("merge", "stride"))]
                    m.next = "list_fetch"
        with m.State("list_wait"):
            m.d.sync += self.wait.eq(self.wait - 1)
            with m.If(self.wait == 0):
                m.d.sync += held.eq(self.read_x.data.as_value())
                m.next = "list_insert"
        with m.State("list_insert"):
            values, ids = Array(words), Array(words[1::2] + words[1::2])
            evens = Array(words[::2] + words[::2])
            value = Mux(merging, evens[lane], values[lane])
            here = self.index + lane
            inside = (here < count) & (lane < step)
            later = [
                (zero_merged(word) > top.bar) & (j >= lane) & (self.index + j < count)
                for j, word in enumerate(words)
            ]
            any_later = later[0]
            for item in later[1:]:
                any_later = any_later | item
            m.d.comb += [
                top.value.eq(value),
                top.id.eq(Mux(merging, ids[lane], self._op("topk", "base") + here)),
                top.insert.eq(inside),
            ]
            m.d.sync += lane.eq(lane + 1)
            with m.If((lane + 1 >= step) | (~merging & ~any_later)):
                m.d.sync += self.index.eq(self.index + step)
                m.next = "list_fetch"
        with m.State("list_write"):
            dst = Mux(merging, self._op("merge", "dst"), self._op("topk", "dst"))
            f = self.f_write
            m.d.comb += [
                top.place.eq(self.index), f.en.eq(1), f.addr.eq(dst + (self.index << 1)),
                f.count.eq(2), f.data[0].eq(top.place_value), f.data[1].eq(top.place_id),
            ]  # fmt: skip
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(self.index + 1 == k):
                m.d.comb += self.front.done.eq(1)
                m.next = "idle"
