"""Walks a matrix slice by slice, as the stream stores it."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import INDEX_BYTES, Plan, Tag, log2
from flightllm.hw.decode.sections import HEADERS

__all__ = ["Walker"]


class Walker(wiring.Component):
    """Starts a slice when the pipeline steps and its header and all its codes are there.

    A slice goes out up to four times: levels, then ones; each at once or row by row.

    Members
    -------
    plan : of the next matrix. headers, available : what has come, see `Sections` and `CodeRing`.
    scale, second : of the pair-group `pair` in header `bank`, see `HeaderStore`.
    index_place : where the slice's mask is, in units of 16 bits. index_next : where the mask of its
        second part is.
    step : the pipeline takes a slice. valid : it gets one. tag : what goes with it.
    take, round_up, flush : moves of the ring. freed, finish : see `Sections`.
    tables : table banks in use here.
    """

    def __init__(self, k_lanes: int, twin: bool) -> None:
        self.k_lanes, self.twin = k_lanes, twin
        size = (2 * k_lanes).bit_length()
        super().__init__({
            "plan": In(stream.Signature(Plan(k_lanes))),
            "headers": In(range(HEADERS + 1)),
            "available": In(size + 4),
            "scale": In(32 * (1 + twin)),
            "second": In(32 * (1 + twin)),
            "pair": Out(4),
            "bank": Out(1),
            "index_place": Out(log2(INDEX_BYTES // 2)),
            "index_next": Out(log2(INDEX_BYTES // 2)),
            "step": In(1),
            "valid": Out(1),
            "tag": Out(Tag(k_lanes, twin)),
            "take": Out(size),
            "round_up": Out(1),
            "flush": Out(1),
            "freed": Out(1),
            "finish": Out(1),
            "tables": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        plan, active = Signal(Plan(self.k_lanes)), Signal()
        pair, number = Signal.like(plan.pairs), Signal.like(plan.slices)
        units, ones, row = Signal.like(plan.units), Signal(), Signal()
        again, last_slice, complete = Signal(), Signal(), Signal()
        pair_end, unit_end, final = Signal(), Signal(), Signal()
        size, last_pair, couple = Signal.like(plan.bytes), Signal.like(plan.pairs), Signal()
        m.d.comb += [
            last_slice.eq(number == plan.slices),
            last_pair.eq(Mux(final, plan.final_pairs, plan.pairs)),
            couple.eq(self._couples(m, plan, pair, unit_end) & (pair != last_pair)),
            size.eq(Mux(last_slice, plan.last_bytes << couple, plan.bytes)),
            again.eq(ones | row),
            complete.eq((row | ~plan.split) & (ones | ~plan.sums)),
            pair_end.eq(last_slice & complete),
            final.eq(units == 0),
            unit_end.eq(pair_end & (pair + couple == last_pair)),
            self.valid.eq(
                active & (self.available >= size) & (~plan.header | self.headers.any())
            ),
        ]
        move = self.valid & self.step
        with m.If(move):
            m.d.comb += [
                self.take.eq(Mux(complete, size, 0)),
                self.round_up.eq(unit_end),
                self.freed.eq(unit_end & plan.header),
                self.finish.eq(unit_end & final),
                self.flush.eq(self.finish),
            ]
            m.d.sync += [
                row.eq(plan.split & ~row), ones.eq(plan.sums & (ones ^ (row | ~plan.split))),
            ]  # fmt: skip
            with m.If(complete):
                m.d.sync += number.eq(Mux(last_slice, 0, number + 1))
            with m.If(pair_end):
                m.d.sync += pair.eq(Mux(unit_end, 0, pair + 1 + couple))
            with m.If(unit_end):
                m.d.sync += [units.eq(units - 1), self.bank.eq(self.bank ^ plan.header)]
        m.d.comb += [
            self.pair.eq(pair),
            self.tables.eq((active & plan.table) << plan.bank),
            self.plan.ready.eq(~active | self.finish),
        ]
        with m.If(self.plan.ready):
            m.d.sync += [active.eq(self.plan.valid), plan.eq(self.plan.payload)]
            m.d.sync += units.eq(self.plan.payload.units)
        self._index(m, plan, pair, row, number)
        first, end = number == 0, unit_end & final
        self._tag(m, plan, (again, last_slice, first, pair_end, end, ones, row, couple))
        return m

    def _couples(self, m: Module, plan: Any, pair: Any, unit_end: Any) -> Any:
        """Whether the pair-group goes out with the next one, if there is one in its unit."""
        if not self.twin:
            return Const(0)
        left = Signal.like(plan.coupled)
        with m.If(unit_end & self.step & self.valid & left.any()):
            m.d.sync += left.eq(left - 1)
        with m.If(self.plan.ready):
            m.d.sync += left.eq(self.plan.payload.coupled)
        return plan.couple & ((left > 1) | ((left == 1) & (pair < plan.coupled_pairs)))

    def _index(self, m: Module, plan: Any, pair: Any, row: Any, number: Any) -> None:
        """Masks lie pair by pair, of private ones row 0's first."""
        mask = Mux(plan.private, Cat(row, pair[:4]), pair[:4])
        inside = log2(self.k_lanes // 8)  # exponent of a whole slice's mask
        half = plan.indices & (plan.kept == 1)
        slices = Mux(half, (number << inside) >> 1, number << inside)
        m.d.comb += [
            self.index_place.eq((mask << plan.lanes_shift) + slices),
            self.index_next.eq((mask | 1) << plan.lanes_shift),
        ]

    def _tag(self, m: Module, plan: Any, state: Any) -> None:
        again, last_slice, first, pair_end, final, ones, row, couple = state
        tag = self.tag
        names = ("select", "sign", "zero", "table", "bank", "dense", "kept", "indices", "source",
                 "join")  # fmt: skip
        m.d.comb += [getattr(tag, name).eq(getattr(plan, name)) for name in names]
        full = Mux(plan.dense & ~plan.join, self.k_lanes, 2 * self.k_lanes)
        m.d.comb += [
            tag.span.eq(Mux(last_slice, plan.last_span, full)),
            tag.rows.eq(Mux(plan.split, Mux(row, 2, 1), 3)),
            tag.sums.eq(ones),
            tag.again.eq(again),
            tag.first.eq(first & ~again),
            tag.last.eq(pair_end),
            tag.final.eq(final),
            tag.couple.eq(couple),
            tag.scale.eq(self.scale),
            tag.second.eq(self.second),
        ]
