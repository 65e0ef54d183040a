"""The SFU's sequencer: MISC instructions as rows, heads, passes and scalars."""

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import UnitFrontEnd, semaphore_signature
from flightllm.hw.sfu.passes import Pass, PassKind
from flightllm.hw.sfu.ports import READ_LATENCY, read_signature, write_signature
from flightllm.hw.sfu.reduce import Reducer
from flightllm.hw.sfu.scalar import ScalarProgram, Scalars
from flightllm.hw.sfu.topk import SortedList, zero_merged
from flightllm.hw.sharing import shared
from flightllm.spec.encoding import float_bits
from flightllm.spec.isa import Unit, by_name

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
    lanes : elements a cycle, 2 to 16. top_k : longest list of TOPK. cores : parts of a maximum.
    add, mul : latencies of the float units.

    Members
    -------
    queue : In, instruction words. semaphores : Out. read_x, read_y, f_write, a_write : Out, ports.
    busy : Out.
    """

    def __init__(self, lanes: int, top_k: int, cores: int, add: int = 3, mul: int = 3) -> None:
        if cores > lanes:
            raise ValueError(f"SFU: {cores} cores' maxima do not fit {lanes} lanes")
        self.lanes, self.top_k, self.cores = lanes, top_k, cores
        self.add, self.mul = add, mul
        super().__init__(
            {
                "queue": In(stream.Signature(32)),
                "semaphores": Out(semaphore_signature),
                "read_x": Out(read_signature(lanes)),
                "read_y": Out(read_signature(lanes)),
                "f_write": Out(write_signature(lanes, 32)),
                "a_write": Out(write_signature(lanes, 8)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.front = self.front = front = UnitFrontEnd(Unit.MISC)
        m.submodules.vector = self.vector = vector = Pass(self.lanes, self.add, self.mul)
        m.submodules.scalars = self.scalars = Scalars(self.add, self.mul)
        m.submodules.reducer = self.reducer = Reducer(self.add)
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
        self.row, self.head = Signal(32), Signal(32)
        self.kind = Signal(PassKind)
        self.wait = Signal(range(READ_LATENCY + 2))
        self.index = Signal(32)
        self.known = Signal(32)  # absolute maximum over the cores' parts
        m.d.comb += vector.kind.eq(self.kind)
        self._places(m)
        self._settings(m)
        self._sequence(m)
        return m

    def _op(self, name: str, operand: str) -> Any:
        return self.front.operand(f"misc.{name}", operand)

    # ------------------------------------------------------------------------ addresses of the row

    def _places(self, m: Module) -> None:
        """Running addresses: of row and head, advanced by strides, no multiplier."""
        self.rows, self.heads = Signal(32), Signal(32)
        self.at: dict[str, Any] = {
            name: Signal(32, name=f"at_{name}")
            for name in ("x", "y", "dst", "amax", "sums", "scale")
        }
        self.row_at = {name: Signal(32, name=f"row_{name}") for name in ("x", "dst", "scale")}
        # function -> register -> (base, stride of rows, stride of heads)
        self.strides: dict[str, dict[str, Any]] = {
            "add": {"x": ("a", "a1", None), "y": ("b", "b1", None), "dst": ("dst", "dst1", None)},
            "stat": {"x": ("src", "src1", None), "y": ("gain", None, None),
                     "sums": ("sums", "sums1", None), "amax": ("amax", "amax1", None)},
            "quant": {"x": ("src", "src1", None), "y": ("gain", None, None),
                      "sums": ("sums", "sums1", None), "amax": ("amax", "amax1", None),
                      "dst": ("dst", "dst1", None), "scale": ("scale", 1, None)},
            "headq": {"x": ("src", "src1", "size"), "y": ("rope", "rope1", None),
                      "dst": ("dst", "dst1", "pad"), "scale": ("scale", "scale1", 1)},
            "softmax": {"x": ("src", "src1", "src2"), "y": ("vscale", None, None),
                        "dst": ("dst", "dst1", "dst2"), "scale": ("scale", "scale1", "scale2")},
            "act": {"x": ("a", "a1", None), "y": ("b", "b1", None), "dst": ("dst", "dst1", None),
                    "amax": ("amax", "amax1", None)},
        }  # fmt: skip

    def _stride(self, name: str, stride: Any) -> Any:
        return stride if isinstance(stride, int) else self._op(name, stride)

    def _begin(self, m: Module) -> None:
        """Addresses of row 0, head 0."""
        with m.Switch(self.front.function):
            for name, places in self.strides.items():
                with m.Case(_function(name)):
                    for place, (base, _, _) in places.items():
                        m.d.sync += self.at[place].eq(self._op(name, base))
                        if place in self.row_at:
                            m.d.sync += self.row_at[place].eq(self._op(name, base))
                    heads = {"headq": "heads", "softmax": "n2"}.get(name)
                    m.d.sync += [
                        self.rows.eq(self._op(name, "n1")),
                        self.heads.eq(self._op(name, heads) if heads else 1),
                        self.row.eq(0), self.head.eq(0),
                    ]  # fmt: skip

    def _advance(self, m: Module) -> None:
        """The next head, or head 0 of the next row, or the end."""
        last_head = self.head + 1 == self.heads
        with m.Switch(self.front.function):
            for name, places in self.strides.items():
                with m.Case(_function(name)):
                    for place, (_, by_row, by_head) in places.items():
                        self._step(m, name, place, by_row, by_head, last_head)
        m.d.sync += self.head.eq(Mux(last_head, 0, self.head + 1))
        m.next = "row"
        with m.If(last_head):
            m.d.sync += self.row.eq(self.row + 1)
            with m.If(self.row + 1 == self.rows):
                m.d.comb += self.front.done.eq(1)
                m.next = "idle"

    def _step(self, m: Module, name: str, place: str, by_row: Any, by_head: Any,
              last_head: Any) -> None:  # fmt: skip
        at = self.at[place]
        if by_head is None:
            if by_row is not None:
                with m.If(last_head):
                    m.d.sync += at.eq(at + self._stride(name, by_row))
            return
        following = self.row_at[place] + self._stride(name, by_row)
        with m.If(last_head):
            m.d.sync += [at.eq(following), self.row_at[place].eq(following)]
        with m.Else():
            m.d.sync += at.eq(at + self._stride(name, by_head))

    # ------------------------------------------------------------------------ what a pass gets

    def _settings(self, m: Module) -> None:
        """Operands of the vector pass and of the scalars, by function."""
        front, vector, scalars = self.front, self.vector, self.scalars
        at = self.at
        m.d.comb += [
            vector.x.eq(at["x"]), vector.y.eq(at["y"]), vector.dst.eq(at["dst"]),
            vector.inverse.eq(scalars.inverse), vector.factor.eq(vector.highest),
            scalars.amax.eq(vector.amax), scalars.qmax.eq(Q127), scalars.alpha.eq(I127),
            scalars.total.eq(self.reducer.total),
        ]  # fmt: skip
        with m.Switch(front.function):
            for name in ("add", "act"):
                with m.Case(_function(name)):
                    m.d.comb += vector.n.eq(self._op(name, "n"))
            with m.Case(_function("stat")):
                norm = _flag(front, "stat", "norm")
                m.d.comb += [
                    vector.n.eq(self._op("stat", "n")), vector.unit_y.eq(~norm),
                    vector.sums.eq(norm), vector.dst.eq(at["sums"]),
                ]  # fmt: skip
            with m.Case(_function("quant")):
                norm = _flag(front, "quant", "norm")
                m.d.comb += [
                    vector.n.eq(self._op("quant", "n")), vector.pad.eq(self._op("quant", "pad")),
                    vector.unit_y.eq(~norm), scalars.amax.eq(self.known),
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
                    vector.high.eq(pos + self.row - base),
                    vector.low.eq(vector.high - self._op("softmax", "window") + 1),
                    vector.way.eq(base >> 4), scalars.amax.eq(vector.highest_y),
                ]  # fmt: skip

    # ------------------------------------------------------------------------ the sequence

    def _sequence(self, m: Module) -> None:
        front, vector, reducer = self.front, self.vector, self.reducer
        function = front.function
        norm = _flag(front, "quant", "norm")
        program = Signal(ScalarProgram)
        m.d.comb += [
            self.scalars.program.eq(program),
            reducer.block.eq(
                Mux(function == _function("quant"), self.read_x.data[0], vector.block)
            ),
            reducer.way.eq(vector.block_way), reducer.valid.eq(vector.block_valid),
        ]  # fmt: skip
        listed = (function == _function("topk")) | (function == _function("merge"))

        def run_pass(kind: Any, then: str) -> None:
            m.d.sync += self.kind.eq(kind)
            m.d.sync += self.after.eq(then_codes[then])
            m.next = "pass"

        then_codes = {"amax": 0, "scalars": 1, "advance": 2, "finish": 3}
        self.after = Signal(2)
        begun = Signal()
        with m.FSM():
            with m.State("idle"):
                m.d.sync += begun.eq(0)
                with m.If(front.start):
                    self._begin(m)
                    m.next = "check"
            with m.State("check"):
                m.next = "row"
                with m.If(function == _function("nop")):
                    m.d.comb += front.done.eq(1)
                    m.next = "idle"
                with m.Elif(listed):
                    m.d.comb += self.top.clear.eq(1)
                    m.d.sync += self.index.eq(0)
                    m.next = "list"
                with m.Elif((self.rows == 0) | (self.heads == 0)):
                    m.d.comb += front.done.eq(1)
                    m.next = "idle"
            with m.State("row"):
                m.d.comb += reducer.clear.eq(1)
                m.d.sync += [self.index.eq(0), program.eq(ScalarProgram.QUANT)]
                with m.Switch(function):
                    with m.Case(_function("add")):
                        run_pass(PassKind.ADD, "advance")
                    with m.Case(_function("stat")):
                        run_pass(PassKind.STAT, "amax")
                    with m.Case(_function("act")):
                        silu, relu = _flag(front, "act", "silu"), _flag(front, "act", "relu")
                        plain = Mux(relu, PassKind.RELU, PassKind.GELU)
                        run_pass(Mux(silu, PassKind.SILU, plain), "amax")
                    with m.Case(_function("headq")):
                        run_pass(PassKind.ROPE, "scalars")
                    with m.Case(_function("softmax")):
                        run_pass(PassKind.SCAN, "scalars")
                    with m.Case(_function("quant")):
                        m.next = "parts"
            with m.State("pass"):
                m.d.sync += begun.eq(1)
                m.d.comb += vector.start.eq(~begun)
                with m.If(begun & vector.done):
                    m.d.sync += begun.eq(0)
                    with m.Switch(self.after):
                        for name, code in then_codes.items():
                            with m.Case(code):
                                m.next = name
            self._quant_inputs(m, norm, program)
            with m.State("scalars"):
                m.d.sync += begun.eq(1)
                m.d.comb += self.scalars.start.eq(~begun)
                with m.If(begun & self.scalars.done):
                    m.d.sync += begun.eq(0)
                    m.next = "scale"
                    with m.If(
                        (function == _function("softmax")) & (program == ScalarProgram.QUANT)
                    ):
                        run_pass(PassKind.SOFT, "finish")
            with m.State("finish"):
                m.d.sync += [begun.eq(1), program.eq(ScalarProgram.SOFT)]
                m.d.comb += reducer.finish.eq(~begun)
                with m.If(begun & reducer.done):
                    m.d.sync += begun.eq(0)
                    m.next = "scalars"
            with m.State("scale"):
                self._word(m, self.at["scale"], self.scalars.scale)
                with m.Switch(function):
                    with m.Case(_function("quant")):
                        run_pass(PassKind.QUANT, "advance")
                    with m.Case(_function("headq")):
                        run_pass(PassKind.LEVELS, "advance")
                    with m.Default():
                        m.next = "advance"
            with m.State("amax"):
                self._word(m, self.at["amax"], vector.amax)
                m.next = "advance"
            with m.State("advance"):
                self._advance(m)
            self._lists(m)

    def _word(self, m: Module, address: Any, value: Any) -> None:
        """Write one word to F; the lanes are drained."""
        f = self.f_write
        m.d.comb += [f.en.eq(1), f.addr.eq(address), f.count.eq(1), f.data[0].eq(value)]

    def _quant_inputs(self, m: Module, norm: Any, program: Any) -> None:
        """The cores' maxima, and the block sums through the accumulators."""
        parts, blocks = self._op("quant", "parts"), self._op("quant", "blocks")
        with m.State("parts"):
            m.d.sync += [self.index.eq(self.index + 1), self.known.eq(0)]
            m.d.comb += [
                self.read_x.en.eq(self.index == 0), self.read_x.addr.eq(self.at["amax"]),
            ]  # fmt: skip
            with m.If(self.index == READ_LATENCY):
                largest = self.read_x.data[0]
                for k in range(1, self.cores):
                    word = Mux(k < parts, self.read_x.data[k], 0)
                    largest = Mux(word > largest, word, largest)
                m.d.sync += [self.known.eq(largest), self.index.eq(0)]
                m.next = "scalars"
                with m.If(norm):
                    m.d.sync += program.eq(ScalarProgram.NORM)
                    m.next = "sums"
        with m.State("sums"):
            arrived = self.index - READ_LATENCY
            there = (self.index >= READ_LATENCY) & (arrived < blocks)
            m.d.sync += self.index.eq(self.index + 1)
            m.d.comb += [
                self.read_x.en.eq(self.index < blocks),
                self.read_x.addr.eq(self.at["sums"] + self.index),
                self.reducer.valid.eq(there), self.reducer.way.eq(arrived[:4]),
            ]  # fmt: skip
            with m.If(self.index == blocks + READ_LATENCY):
                m.next = "total"
                m.d.comb += self.reducer.finish.eq(1)
        with m.State("total"), m.If(self.reducer.done):
            m.next = "scalars"

    # ------------------------------------------------------------------------ lists

    def _lists(self, m: Module) -> None:
        """topk and merge: fetch a few words, insert those that pass the bar, write the list."""
        merging = self.front.function == _function("merge")
        held = Signal(32 * self.lanes)
        words = [held.word_select(k, 32) for k in range(self.lanes)]
        lane, pair = Signal(range(self.lanes + 1)), Signal(32)
        part, base = Signal(32), Signal(32)
        k = Mux(merging, self._op("merge", "k"), self._op("topk", "k"))
        count = Mux(merging, k, self._op("topk", "n"))
        step = Mux(merging, self.lanes // 2, self.lanes)
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
