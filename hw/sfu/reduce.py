"""Sums in the order of docs/number-formats.md: blocks of 16 by adjacent pairs, 16 rotating
accumulators, adjacent pairs over those."""

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
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
    add : latency of its adders. blocks : sums that it can take in a cycle, a power of two;
        16 / blocks must be above `add`.

    Members
    -------
    clear : In, a pulse: all accumulators +0. block : In, sums of consecutive blocks; way : In, the
    first one's index modulo 16; count : In, how many, 0 to `blocks`; those of more than one begin
    at a multiple of `blocks`. finish : In, a pulse once the last block has been given.
    total : Out, the sum; done : Out, a pulse when it is there; it holds until `clear`.
    idle : Out, not between `finish` and `done`.
    """

    def __init__(self, add: int, blocks: int = 1) -> None:
        if not 1 <= add <= WAYS // blocks:
            raise ValueError(
                f"Reducer add must be an integer from 1 to {WAYS // blocks}, not {add!r}"
            )
        self.add, self.blocks = add, blocks
        super().__init__(
            {
                "clear": In(1),
                "block": In(data.ArrayLayout(Float32, blocks)),
                "way": In(range(WAYS)),
                "count": In(range(blocks + 1)),
                "finish": In(1),
                "total": Out(Float32),
                "done": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        slots = Array(Signal(Float32, name=f"slot{k}") for k in range(WAYS))
        adders = [self._adder(m, slots, k) for k in range(self.blocks)]
        adder, issue, dest = adders[0]
        pair, width = Signal(range(WAYS)), Signal(range(WAYS + 1))
        highest = Signal(range(WAYS))  # way used since `clear`
        wait = Signal(range(self.add + 2))
        m.d.comb += self.total.eq(slots[0])
        with m.FSM():
            with m.State("collect"):
                m.d.comb += self.idle.eq(1)
                self._collect(m, slots, adders)
                last = self.way + self.count - 1
                with m.If((self.count != 0) & (last > highest)):
                    m.d.sync += highest.eq(last)
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

    def _adder(self, m: Module, slots: Any, number: int) -> tuple[Any, Signal, Signal]:
        """An adder whose results go to the slots `dest` when `issue`."""
        m.submodules[f"adder_{number}"] = adder = FloatAddPositive(self.add)
        issue, dest = Signal(name=f"issue_{number}"), Signal(range(WAYS), name=f"dest_{number}")
        back = delay(m, Const(1), issue, self.add, f"back_{number}")
        where = delay(m, Const(1), dest, self.add, f"where_{number}")
        m.d.comb += adder.en.eq(1)
        with m.If(back):
            m.d.sync += slots[where].eq(adder.o)
        return adder, issue, dest

    def _collect(self, m: Module, slots: Any, adders: list[tuple[Any, Signal, Signal]]) -> None:
        """Add sums to their ways: adder k has every way that is k modulo `blocks`."""
        several = self.count > 1
        bits = self.blocks.bit_length() - 1
        for k, (adder, issue, dest) in enumerate(adders):
            mine = Const(1) if self.blocks == 1 else self.way[:bits] == k
            way = Cat(Const(k, bits), self.way[bits:])
            m.d.comb += [
                issue.eq(Mux(several, self.count > k, (self.count == 1) & mine)), dest.eq(way),
                adder.i.a.eq(Array(slots[k :: self.blocks])[self.way[bits:]]),
                adder.i.b.eq(Mux(several, self.block[k].as_value(), self.block[0].as_value())),
            ]  # fmt: skip
