"""Sums in the order of docs/number-formats.md: blocks of 16 by adjacent pairs, 16 rotating
accumulators, adjacent pairs over those."""

from typing import Any

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.floating.add import FloatAddPositive
from flightllm.hw.floating.layout import Float32
from flightllm.hw.floating.pipeline import delay

__all__ = ["BlockSums", "Reducer"]

BLOCK = 16
WAYS = 16


class BlockSums(wiring.Component):
    """Adjacent-pair sums of 16 consecutive elements, none of them negative.

    Parameters
    ----------
    lanes : elements a cycle, a power of two up to 16. add : latency of the adders.

    Members
    -------
    i : In, `lanes` summands; those past the end are +0. valid, last : In, of this cycle's summands;
    the pass begins anew behind `last`.
    o : Out, sum of a block. o_valid, o_last : Out.
    """

    def __init__(self, lanes: int, add: int) -> None:
        if lanes not in (1, 2, 4, 8, 16):
            raise ValueError(f"BlockSums lanes must be a power of two up to 16, not {lanes!r}")
        self.lanes, self.add = lanes, add
        super().__init__(
            {
                "i": In(data.ArrayLayout(Float32, lanes)),
                "valid": In(1),
                "last": In(1),
                "o": Out(Float32),
                "o_valid": Out(1),
                "o_last": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        values, valid, last = [self.i[k] for k in range(self.lanes)], self.valid, self.last
        level = 0
        while len(values) > 1:
            sums = []
            for k in range(0, len(values), 2):
                m.submodules[f"add_{level}_{k}"] = unit = FloatAddPositive(self.add)
                m.d.comb += [unit.en.eq(1), unit.i.a.eq(values[k]), unit.i.b.eq(values[k + 1])]
                sums.append(unit.o)
            values, level = sums, level + 1
        steps = Const(1), level * self.add
        valid = delay(m, steps[0], valid, steps[1], "tree_valid")
        last = delay(m, steps[0], last, steps[1], "tree_last")
        value = values[0]
        width = self.lanes
        while width < BLOCK:
            value, valid, last = self._pair(m, value, valid, last, width)
            width *= 2
        m.d.comb += [self.o.eq(value), self.o_valid.eq(valid), self.o_last.eq(last)]
        return m

    def _pair(self, m: Module, value: Any, valid: Any, last: Any, width: int) -> Any:
        """Adds every second sum to the one before it; a last one without a partner to +0."""
        first, held = Signal(Float32, name=f"first_{width}"), Signal(name=f"held_{width}")
        m.submodules[f"pair_{width}"] = unit = FloatAddPositive(self.add)
        full = Signal(name=f"full_{width}")
        m.d.comb += [
            full.eq(valid & (held | last)),
            unit.en.eq(1),
            unit.i.a.eq(Mux(held, first.as_value(), value.as_value())),
            unit.i.b.eq(Mux(held, value.as_value(), 0)),
        ]
        with m.If(valid):
            m.d.sync += [first.eq(value), held.eq(~held & ~last)]
        one = Const(1)
        later = delay(m, one, full, self.add, f"valid_{width}")
        return unit.o, later, delay(m, one, last & valid, self.add, f"last_{width}")


class Reducer(wiring.Component):
    """The rotating accumulators.

    Parameters
    ----------
    add : latency of its adder, at most 16.

    Members
    -------
    clear : In, a pulse: all accumulators +0. block : In, a block's sum; way : In, its index
    modulo 16; valid : In. finish : In, a pulse once the last block has been given.
    total : Out, the sum; done : Out, a pulse when it is there; it holds until `clear`.
    idle : Out, not between `finish` and `done`.
    """

    def __init__(self, add: int) -> None:
        if not 1 <= add <= WAYS:
            raise ValueError(f"Reducer add must be an integer from 1 to {WAYS}, not {add!r}")
        self.add = add
        super().__init__(
            {
                "clear": In(1),
                "block": In(Float32),
                "way": In(range(WAYS)),
                "valid": In(1),
                "finish": In(1),
                "total": Out(Float32),
                "done": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        slots = Array(Signal(Float32, name=f"slot{k}") for k in range(WAYS))
        m.submodules.adder = adder = FloatAddPositive(self.add)
        issue, dest = Signal(), Signal(range(WAYS))
        one = Const(1)
        back = delay(m, one, issue, self.add, "back")
        where = delay(m, one, dest, self.add, "where")
        m.d.comb += adder.en.eq(1)
        with m.If(back):
            m.d.sync += slots[where].eq(adder.o)

        pair, width = Signal(range(WAYS)), Signal(range(WAYS + 1))
        highest = Signal(range(WAYS))  # way used since `clear`
        wait = Signal(range(self.add + 2))
        m.d.comb += self.total.eq(slots[0])
        with m.FSM():
            with m.State("collect"):
                m.d.comb += [
                    self.idle.eq(1), issue.eq(self.valid), dest.eq(self.way),
                    adder.i.a.eq(slots[self.way]), adder.i.b.eq(self.block),
                ]  # fmt: skip
                with m.If(self.valid & (self.way > highest)):
                    m.d.sync += highest.eq(self.way)
                with m.If(self.clear):
                    m.d.sync += [*(slot.eq(0) for slot in slots), highest.eq(0)]
                with m.If(self.finish):
                    # Above the last way in use all levels would only add +0.
                    m.d.sync += [wait.eq(self.add), width.eq(0), pair.eq(0)]
                    for bit in range(len(highest)):
                        with m.If(highest[bit]):
                            m.d.sync += width.eq(1 << bit)
                    m.next = "wait"
            with m.State("wait"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "level"
                    with m.If(width == 0):
                        m.d.comb += self.done.eq(1)
                        m.next = "collect"
            with m.State("level"):
                m.d.comb += [
                    issue.eq(1), dest.eq(pair), adder.i.a.eq(slots[(pair << 1)[:4]]),
                    adder.i.b.eq(slots[((pair << 1) | 1)[:4]]),
                ]  # fmt: skip
                m.d.sync += pair.eq(pair + 1)
                with m.If(pair == width - 1):
                    m.d.sync += [pair.eq(0), width.eq(width >> 1), wait.eq(self.add)]
                    m.next = "wait"
        return m
