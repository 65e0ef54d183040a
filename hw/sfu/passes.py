"""One pass of the lanes over a vector: requests, lanes, maxima and sums behind them."""

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.layout import Float32
from flightllm.hw.floating.pipeline import delay
from flightllm.hw.sfu.lanes import ONE, Lane, LaneMode, Latencies, PastValues
from flightllm.hw.sfu.ports import READ_LATENCY, read_signature, write_signature
from flightllm.hw.sfu.reduce import BlockSums
from flightllm.spec.parameters import words_of

__all__ = ["HEAD", "Pass", "PassKind", "order_key", "unkey"]

HEAD = 256
"""Longest head, elements: what the local buffer holds."""


class PassKind(IntEnum):
    """A pass is a lane mode with its sources and destinations."""

    ADD = 0
    STAT = 1
    QUANT = 2
    ROPE = 3
    SOFT = 4
    SILU = 5
    RELU = 6
    GELU = 7
    LEVELS = 8
    SCAN = 9


_MODES = {
    **{PassKind(int(mode)): mode for mode in LaneMode},
    PassKind.LEVELS: LaneMode.QUANT,
    PassKind.SCAN: LaneMode.ADD,
}
_FLOAT_OUT = (PassKind.ADD, PassKind.SILU, PassKind.RELU, PassKind.GELU)
_LEVEL_OUT = (PassKind.QUANT, PassKind.SOFT, PassKind.LEVELS)
_MAGNITUDE = (PassKind.STAT, PassKind.ROPE, PassKind.SILU, PassKind.RELU, PassKind.GELU)


def order_key(bits: Any) -> Any:
    """An unsigned integer that orders as the float32 of these bits does."""
    return Mux(bits[31], ~bits, bits | (1 << 31))[:32]


def unkey(key: Any) -> Any:
    """The bits of an `order_key`."""
    return Mux(key[31], key & 0x7FFFFFFF, ~key)[:32]


def _one_of(kind: Any, kinds: Any) -> Any:
    return Cat(kind == k for k in kinds).any()


class Pass(wiring.Component):
    """Streams one vector through the lanes.

    Parameters
    ----------
    lanes : a power of two, 1 to 16; one lane takes the two words of a group in turn. add, mul :
        latencies of the float units.

    Members
    -------
    start : In, a pulse; the following hold from then until `done`.
    kind : In(PassKind). x, y : In, F addresses of the operands. dst : In, F or A address.
    n : In, elements. pad : In, elements to write, n or more (quantised passes).
    unit_y : In, y is 1 (quant and stat without gain). turn : In, rope rotates; z is then the
    address of the sines. half : In, of the local buffer (rope, levels), which holds two heads.
    low, high : In, soft and scan: first and last valid element (signed).
    sums : In, stat writes its block sums to F from `dst` on. way : In, soft's first way.
    inverse, factor, narrow : In, as in `Lane`.
    read_x, read_y, f_write, a_write : ports. amax : Out, largest magnitude of the results;
    highest, highest_y : Out, scan's maxima. block, block_valid, block_way : Out, soft's block sums.
    done : Out, a pulse: everything is written.
    """

    def __init__(self, lanes: int, add: int, mul: int) -> None:
        if lanes not in (1, 2, 4, 8, 16):
            raise ValueError(f"SFU lanes must be 1, 2, 4, 8 or 16, not {lanes!r}")
        self.in_turn = lanes == 1
        self.lanes = lanes = words_of(lanes)  # of a group
        self.latencies = Latencies(add, mul, lanes if self.in_turn else 1)
        words = ("x", "y", "z", "dst", "n", "pad")
        super().__init__(
            {
                "start": In(1),
                "kind": In(PassKind),
                **dict.fromkeys(words, In(32)),
                **dict.fromkeys(("unit_y", "turn", "sums", "narrow", "half"), In(1)),
                "way": In(4),
                "low": In(signed(32)),
                "high": In(signed(32)),
                "inverse": In(Float32),
                "factor": In(Float32),
                "read_x": Out(read_signature(lanes)),
                "read_y": Out(read_signature(lanes)),
                "f_write": Out(write_signature(lanes, 32)),
                "a_write": Out(write_signature(lanes, 8)),
                **dict.fromkeys(("amax", "highest", "highest_y", "block"), Out(32)),
                "block_valid": Out(1),
                "block_way": Out(4),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        tag = data.StructLayout({
            "valid": 1, "last": 1, "keep": self.lanes, "count": range(self.lanes + 1), "dst": 32,
            "kind": PassKind,
        })  # fmt: skip
        issued = Signal(tag)
        self._issue(m, issued)
        x, y, z = self._operands(m, issued)
        lanes = self._one_lane(m, x, y, z, issued) if self.in_turn else self._lanes(m, x, y, z)
        depth = READ_LATENCY + self.latencies.longest + 2
        result = self._tag_at(m, "result", tag, issued, depth, self.latencies.result)
        summand = self._tag_at(m, "summand", tag, issued, depth, self.latencies.summand)
        if not self.in_turn:
            for lane, keep in zip(lanes, summand.keep):
                m.d.comb += lane.keep.eq(keep)
        self._local_write(m, lanes, result)
        self._outputs(m, lanes, result)
        self._maxima(m, lanes, result)
        self._scan(m, x, y, delay(m, Const(1), issued, READ_LATENCY, "arrived"))
        self._sums(m, lanes, summand)
        return m

    # ---------------------------------------------------------------------------- requests

    def _issue(self, m: Module, issued: Any) -> None:
        """Requests, one group of words a cycle (rope, and one lane: two cycles), then the drain."""
        place, left = Signal(32), Signal(32)
        active, second = Signal(), Signal()
        rope = (self.kind == PassKind.ROPE) & self.turn
        twice = Const(1) if self.in_turn else rope
        go, inside = Signal(), Signal()
        single = _one_of(self.kind, (PassKind.RELU, PassKind.GELU, PassKind.LEVELS))
        uses_y = Mux(self.kind == PassKind.ROPE, self.turn, ~self.unit_y & ~single)
        m.d.comb += [
            go.eq(active & (left != 0)),
            inside.eq(go & (place < self.n)),  # behind it only zeros are written
            self.read_x.en.eq(inside & (self.kind != PassKind.LEVELS)),
            self.read_x.addr.eq(self.x + place),
            self.read_y.en.eq(inside & uses_y),
            self.read_y.addr.eq(self.y + place),
            issued.valid.eq(go & (~twice | second)),
            issued.last.eq(left <= self.lanes),
            issued.count.eq(Mux(left <= self.lanes, left, self.lanes)),
            issued.dst.eq(self.dst + place),
            issued.kind.eq(self.kind),
        ]
        with m.If(rope):
            m.d.comb += self.read_y.addr.eq(Mux(second, self.z, self.y) + (place >> 1))
        bounded = _one_of(self.kind, (PassKind.SOFT, PassKind.SCAN))
        for k in range(self.lanes):
            element = Signal(signed(33), name=f"element{k}")
            m.d.comb += [
                element.eq(place + k),
                issued.keep[k].eq(
                    Mux(
                        bounded,
                        (element >= self.low) & (element <= self.high),
                        element < self.n,
                    )
                ),
            ]
        drain = Signal(8)
        lengths = Array(map(self._drain, PassKind))
        padded = _one_of(self.kind, _LEVEL_OUT)
        with m.If(self.start):
            m.d.sync += [
                active.eq(1), place.eq(0), second.eq(0), left.eq(Mux(padded, self.pad, self.n)),
                drain.eq(lengths[self.kind]),
            ]  # fmt: skip
        with m.Elif(go):
            m.d.sync += second.eq(~second)
            with m.If(issued.valid):
                m.d.sync += [
                    place.eq(place + self.lanes),
                    left.eq(Mux(issued.last, 0, left - self.lanes)),
                    second.eq(0),
                ]
        with m.Elif(active):
            m.d.sync += drain.eq(drain - 1)
            with m.If(drain == 0):
                m.d.sync += active.eq(0)
                m.d.comb += self.done.eq(1)

    def _drain(self, kind: PassKind) -> int:
        """Cycles behind the last request until the last result is in its place."""
        mode, tree = _MODES[kind], 4 * self.latencies.add
        if kind == PassKind.SCAN:
            return READ_LATENCY + 2
        last = self.latencies.result[mode]
        if mode in self.latencies.summand:
            last = max(last, self.latencies.summand[mode] + tree)
        return READ_LATENCY + 1 + last

    # ---------------------------------------------------------------------------- lanes

    def _operands(self, m: Module, issued: Any) -> tuple[Any, Any, Any]:
        """Words of x, y, z in the cycle in which the data is there."""
        layout = data.ArrayLayout(32, self.lanes)
        x, y, z = Signal(layout), Signal(layout), Signal(layout)
        local = self._local_read(m, issued)
        cosines = Signal(layout)
        m.d.sync += cosines.eq(self.read_y.data)
        m.d.comb += x.eq(Mux(self.kind == PassKind.LEVELS, local, self.read_x.data.as_value()))
        with m.If(self.kind == PassKind.ROPE):
            for k in range(self.lanes):
                m.d.comb += [
                    y[k].eq(Mux(self.turn, cosines[k // 2], ONE)),
                    z[k].eq(Mux(self.turn, self.read_y.data[k // 2], 0)),
                ]
        with m.Elif(self.unit_y | (self.kind == PassKind.LEVELS)):
            m.d.comb += [y[k].eq(ONE) for k in range(self.lanes)]
        with m.Else():
            m.d.comb += y.eq(self.read_y.data)
        return x, y, z

    def _again(self, m: Module, name: str, mode: Any, source: Any) -> Any:
        """An operand when its lane wants it a second time."""
        cycles = getattr(self.latencies, f"{name}_again")
        width = len(source)
        m.submodules[f"past_{name}"] = past = PastValues(width, max(cycles.values()) + 2)
        ago = Array(cycles.get(lane_mode, 2) for lane_mode in LaneMode)
        m.d.comb += [past.i.eq(source), past.ago.eq(ago[mode])]
        return past.o

    def _mode(self, m: Module) -> Signal:
        modes = Array(int(_MODES[kind]) for kind in PassKind)
        mode = Signal(LaneMode)
        m.d.comb += mode.eq(modes[self.kind])
        return mode

    def _lane(self, m: Module, k: int, mode: Any, **operands: Any) -> Lane:
        m.submodules[f"lane{k}"] = lane = Lane(self.latencies)
        m.d.comb += [
            lane.mode.eq(mode),
            *(getattr(lane, name).eq(value) for name, value in operands.items()),
            lane.factor.eq(self.factor), lane.inverse.eq(self.inverse),
            lane.narrow.eq(self.narrow),
        ]  # fmt: skip
        return lane

    def _lanes(self, m: Module, x: Any, y: Any, z: Any) -> list[Any]:
        """A lane for each word; `keep` is left to be connected."""
        mode = self._mode(m)
        x_again, y_again = (
            data.View(x.shape(), self._again(m, name, mode, Value.cast(source)))
            for name, source in (("x", x), ("y", y))
        )
        return [
            self._lane(
                m, k, mode, x=x[k], y=y[k], z=z[k], partner=x[k ^ 1], minus=k % 2 == 0,
                x_again=x_again[k], y_again=y_again[k],
            )  # fmt: skip
            for k in range(self.lanes)
        ]

    def _one_lane(self, m: Module, x: Any, y: Any, z: Any, issued: Any) -> list[Any]:
        """One lane for both words of a group: the second enters a cycle later, out of registers,
        and the first one's results wait for it."""
        mode, second = self._mode(m), Signal()
        valid, keep = (
            delay(m, Const(1), part, READ_LATENCY, f"{name}_turn")
            for name, part in (("valid", issued.valid), ("keep", issued.keep))
        )
        m.d.sync += second.eq(valid)
        words = {}
        for name, now, later in (
            ("x", x[0], x[1]), ("partner", x[1], x[0]), ("y", y[0], y[1]), ("z", z[0], z[1]),
            ("keep", keep[0], keep[1]),
        ):  # fmt: skip
            held, word = (Signal(len(now), name=f"{name}_{part}") for part in ("held", "turn"))
            m.d.sync += held.eq(later)
            m.d.comb += word.eq(Mux(second, held, now))
            words[name] = word
        y_again = self._again(m, "y", mode, Cat(words["y"], words.pop("keep")))
        lane = self._lane(
            m, 0, mode, **words, minus=delay(m, Const(1), ~second, self.latencies.mul, "minus"),
            x_again=self._again(m, "x", mode, words["x"]), y_again=y_again[:32], keep=y_again[32],
        )  # fmt: skip
        first = SimpleNamespace()
        for name in ("value", "square", "power", "level"):
            result = getattr(lane, name)
            held = Signal(result.shape(), name=f"first_{name}")
            m.d.sync += held.eq(result)
            setattr(first, name, held)
        return [first, lane]

    def _tag_at(self, m: Module, name: str, tag: Any, issued: Any, depth: int,
                cycles: dict[LaneMode, int]) -> Any:  # fmt: skip
        """The tag that belongs to the lanes' outputs of this cycle."""
        m.submodules[f"tag_{name}"] = past = PastValues(tag.size, depth)
        ago = Array(READ_LATENCY + cycles.get(_MODES[kind], 2) for kind in PassKind)
        there = Signal(tag, name=f"{name}_tag")
        m.d.comb += [past.i.eq(issued), past.ago.eq(ago[self.kind]), there.eq(past.o)]
        # A longer look back may find the pass before.
        with m.If(data.View(tag, past.o).kind != self.kind):
            m.d.comb += there.valid.eq(0)
        return there

    # ---------------------------------------------------------------------------- local buffer

    def _local_read(self, m: Module, issued: Any) -> Any:
        """Heads between rope and their quantisation; read as late as F."""
        depth = HEAD // self.lanes
        m.submodules.local = self._local = local = Memory(
            shape=32 * self.lanes, depth=2 * depth, init=[]
        )
        read, place = local.read_port(), Signal(range(depth))
        with m.If(self.start):
            m.d.sync += place.eq(0)
        with m.Elif(issued.valid):
            m.d.sync += place.eq(place + 1)
        m.d.comb += [read.addr.eq(Cat(place, self.half)), read.en.eq(1)]
        return delay(m, Const(1), read.data, READ_LATENCY - 1, "local_data")

    def _local_write(self, m: Module, lanes: list[Any], result: Any) -> None:
        write, place = self._local.write_port(), Signal(range(HEAD // self.lanes))
        ours = result.valid & (self.kind == PassKind.ROPE)
        with m.If(self.start):
            m.d.sync += place.eq(0)
        with m.Elif(ours):
            m.d.sync += place.eq(place + 1)
        m.d.comb += [
            write.en.eq(ours), write.addr.eq(Cat(place, self.half)),
            write.data.eq(Cat(x.value for x in lanes)),
        ]  # fmt: skip

    # ---------------------------------------------------------------------------- results

    def _outputs(self, m: Module, lanes: list[Any], result: Any) -> None:
        f, a = self.f_write, self.a_write
        m.d.comb += [
            a.en.eq(result.valid & _one_of(self.kind, _LEVEL_OUT)),
            a.addr.eq(result.dst), a.count.eq(result.count),
            f.en.eq(result.valid & _one_of(self.kind, _FLOAT_OUT)),
            f.addr.eq(result.dst), f.count.eq(result.count),
        ]  # fmt: skip
        for k, lane in enumerate(lanes):
            m.d.comb += [
                a.data[k].eq(Mux(result.keep[k], lane.level, 0)), f.data[k].eq(lane.value),
            ]  # fmt: skip

    def _maxima(self, m: Module, lanes: list[Any], result: Any) -> None:
        """Largest magnitude of the results, a register behind them."""
        magnitudes = [
            Mux(result.keep[k], lane.value.as_value()[:31], 0) for k, lane in enumerate(lanes)
        ]
        largest = Signal(31)
        m.d.sync += largest.eq(
            Mux(result.valid & _one_of(self.kind, _MAGNITUDE), _largest(magnitudes), 0)
        )
        with m.If(self.start):
            m.d.sync += self.amax.eq(0)
        with m.Elif(largest > self.amax):
            m.d.sync += self.amax.eq(largest)

    def _scan(self, m: Module, x: Any, y: Any, arrived: Any) -> None:
        """Signed maximum of x, and maximum of y (not negative), over the valid elements."""
        keys = [Mux(arrived.keep[k], order_key(x[k]), 0) for k in range(self.lanes)]
        others = [Mux(arrived.keep[k], y[k], 0) for k in range(self.lanes)]
        best, key = Signal(32), Signal(32)
        other = Signal(32)
        scanning = arrived.valid & (self.kind == PassKind.SCAN)
        m.d.sync += [
            best.eq(Mux(scanning, _largest(keys), 0)), other.eq(Mux(scanning, _largest(others), 0)),
        ]  # fmt: skip
        m.d.comb += self.highest.eq(unkey(key))
        with m.If(self.start & (self.kind == PassKind.SCAN)):
            m.d.sync += [key.eq(0), self.highest_y.eq(0)]
        with m.Else():
            with m.If(best > key):
                m.d.sync += key.eq(best)
            with m.If(other > self.highest_y):
                m.d.sync += self.highest_y.eq(other)

    def _sums(self, m: Module, lanes: list[Any], summand: Any) -> None:
        """Block sums: to F for stat, to the accumulators' port for soft."""
        m.submodules.blocks = blocks = BlockSums(self.lanes, self.latencies.add)
        soft = self.kind == PassKind.SOFT
        counts = _one_of(self.kind, (PassKind.STAT, PassKind.SOFT))
        for k, lane in enumerate(lanes):
            square = Mux(summand.keep[k], lane.square.as_value(), 0)
            m.d.comb += blocks.i[k].eq(Mux(soft, lane.power.as_value(), square))
        m.d.comb += [blocks.valid.eq(summand.valid & counts), blocks.last.eq(summand.last)]
        number = Signal(32)
        with m.If(self.start):
            m.d.sync += number.eq(0)
        with m.Elif(blocks.o_valid):
            m.d.sync += number.eq(number + 1)
        m.d.comb += [
            self.block.eq(blocks.o),
            self.block_valid.eq(blocks.o_valid & soft),
            self.block_way.eq((self.way + number)[:4]),
        ]
        with m.If(blocks.o_valid & ~soft & self.sums):
            f = self.f_write
            m.d.comb += [
                f.en.eq(1), f.addr.eq(self.dst + number), f.count.eq(1), f.data[0].eq(blocks.o),
            ]  # fmt: skip


def _largest(values: list[Any]) -> Any:
    """Greatest of unsigned values, by pairs."""
    while len(values) > 1:
        values = [Mux(a > b, a, b) for a, b in zip(values[::2], values[1::2])]
    return values[0]
