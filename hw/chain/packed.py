"""The CSD-chain of DSP48s: two rows share a multiplier, slices are cascaded in groups of two."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain.primitive import DSP48E2, Dsp, DspKind
from flightllm.hw.floating.pipeline import delay

__all__ = ["LANE_BITS", "PackedChain", "adjust_points", "borrow", "chain_layout", "sum_bits"]

LARGEST = 128 * 127
"""The largest product of a level and an activation."""
LANE_BITS = {"DSP48E2": 18, "DSP48E1": 17}
"""The low lane; on DSP48E1, whose operand has 25 bits, for levels of up to 7 bits."""
KEPT_BITS = 14
"""Bits that the overflow adjust unit leaves in the low lane: about one product."""


def sum_bits(lanes: int) -> int:
    """Bits of a signed sum of `lanes` products."""
    return (LARGEST * lanes).bit_length() + 1


def chain_layout(lanes: int) -> data.ArrayLayout:
    """Levels of two rows."""
    return data.ArrayLayout(data.ArrayLayout(signed(8), lanes), 2)


def adjust_points(length: int) -> list[int]:
    """Slices behind which the low lane is relieved, for `length` products of full 8-bit levels.

    What slice j has summed is adjusted in slice j + 2, so the lane must hold one product more.
    """
    room = (1 << (LANE_BITS["DSP48E2"] - 1)) - 1
    first, later = room // LARGEST - 2, (room - (1 << KEPT_BITS) + 1) // LARGEST - 1
    return list(range(first, length - 2, later))


def borrow(high: Value, low: Value) -> Value:
    """The high lane's sum: a negative low lane has taken one from it."""
    return high + low[-1]


class PackedChain(wiring.Component):
    """Dot products of two rows with one vector, a new one every enabled cycle.

    Slice i multiplies (row 1 << lane | row 0) with lane i's activation; operands are delayed by i
    cycles. A reduction node separates the two sums at the end of a cascade.

    Parameters
    ----------
    kind : DSP48E1 or DSP48E2. length : slices.
    nodes : slices, even, at which a Z-MUX chooses between the cascade and 0; a reduction node
        stands before each. Without nodes the overflow adjust unit keeps the low lane small.
        With `join` the sum of what is joined must fit the low lane: 8 products of 8-bit levels,
        16 of 7, 32 of 6, 64 of 5, 128 of 4 (one bit less on DSP48E1).
    modelled : see `Dsp`.

    Members
    -------
    en : In(1). codes, x : In, levels and activations (-127 to 127).
    rows : In(2), rows that have levels. Only DSP48E1 looks: full 8-bit levels go one row at a time.
    join : In, one bit a node.
    sums : Out, of each row, `latency` enabled cycles later.
    """

    def __init__(self, kind: DspKind, length: int, nodes: Sequence[int] = (),
                 modelled: bool = False) -> None:  # fmt: skip
        if any(node % 2 or not 0 < node < length for node in nodes):
            raise ValueError(f"Nodes must be even and inside a chain of {length}, not {nodes!r}")
        if not kind.w_mux and max(b - a for a, b in zip((0, *nodes), (*nodes, length))) > 8:
            raise ValueError(f"{kind.name} has no adjust unit: {length} slices need nodes")
        self.kind, self.length, self.nodes, self.modelled = kind, length, tuple(nodes), modelled
        self.latency = self.cycles(kind, length)
        super().__init__({
            "en": In(1, init=1),
            "codes": In(chain_layout(length)),
            "x": In(data.ArrayLayout(signed(8), length)),
            "rows": In(2, init=3),
            "join": In(max(1, len(nodes))),
            "sums": Out(data.ArrayLayout(signed(sum_bits(length)), 2)),
        })  # fmt: skip

    @staticmethod
    def cycles(kind: DspKind, length: int) -> int:
        """Latency of a chain of that many slices."""
        return kind.latency + length

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        points = adjust_points(self.length) if self.kind.w_mux and not self.nodes else []
        high: dict[int, Value] = {}  # taken out of the low lane, by the slice that had it
        ends: list[tuple[int, Value]] = []
        before = None
        for k in range(self.length):
            dsp = Dsp(
                self.kind, cascaded=k > 0, corrected=k - 2 in points, modelled=self.modelled
            )
            m.submodules[f"dsp_{k}"] = dsp
            self._operands(m, k, dsp)
            if before is not None:
                m.d.comb += dsp.pcin.eq(before.pcout)
            if k - 2 in points:
                m.d.comb += dsp.c.eq(-(high[k - 2] << KEPT_BITS))
            if k in points:
                high[k] = dsp.p[KEPT_BITS : LANE_BITS[self.kind.name]].as_signed()
            if k + 1 in self.nodes or k + 1 == self.length:
                ends.append((k, dsp.p))
            before = dsp
        self._reduce(m, ends, high)
        return m

    def _operands(self, m: Module, k: int, dsp: Dsp) -> None:
        """Lane k's operands, k cycles late; the join two more, for it is registered once."""
        lane = LANE_BITS[self.kind.name]
        low, above, x = (
            delay(m, self.en, value, k, f"{name}_{k}")
            for name, value in (
                ("low", self.codes[0][k]), ("high", self.codes[1][k]), ("x", self.x[k]),
            )
        )  # fmt: skip
        join: Value = Const(1, 1)
        if k in self.nodes:
            join = delay(
                m, self.en, self.join[self.nodes.index(k)], k + self.kind.latency - 2, f"join_{k}"
            )
        m.d.comb += [
            dsp.en.eq(self.en), dsp.a.eq(low), dsp.d.eq(above << lane), dsp.b.eq(x),
            dsp.join.eq(join),
        ]  # fmt: skip

    def _reduce(self, m: Module, ends: list[tuple[int, Value]], high: dict[int, Value]) -> None:
        """Reduction nodes: both sums of each cascade, brought to the same cycle and added."""
        totals: list[Value] = [Const(0), Const(0)]
        for last, p in ends:
            sums = self._node(m, last, p)
            if last + 1 < self.length:
                number = self.nodes.index(last + 1)
                open_ = delay(
                    m, self.en, self.join[number], self.kind.latency + last, f"open_{last}"
                )
                sums = [Mux(open_, 0, value) for value in sums]
            for row, value in enumerate(sums):
                narrow = Signal(signed(sum_bits(last + 1)), name=f"node_{last}_{row}")
                m.d.comb += narrow.eq(value)
                totals[row] = totals[row] + delay(
                    m, self.en, narrow, self.length - 1 - last, f"node_{last}_{row}_late"
                )
        for point, value in high.items():
            late = delay(m, self.en, value, self.length - 1 - point, f"taken_{point}")
            totals[0] = totals[0] + (late << KEPT_BITS)
        with m.If(self.en):
            m.d.sync += [self.sums[row].eq(totals[row]) for row in range(2)]

    def _node(self, m: Module, last: int, p: Value) -> list[Value]:
        lane = LANE_BITS[self.kind.name]
        low, above = p[:lane].as_signed(), p[lane:].as_signed()
        if self.kind is DSP48E2:
            return [low, borrow(above, low)]
        # A row alone may exceed its lane: the whole sum is its own.
        rows = delay(m, self.en, self.rows, self.kind.latency + last, f"rows_{last}")
        alone = rows == 1
        return [Mux(alone, p, low), Mux(alone, 0, borrow(above, low))]
