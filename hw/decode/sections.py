"""Which section of which unit a beat belongs to: headers to their store, codes to the ring."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import INDEX_BYTES, Plan, log2

__all__ = ["HEADERS", "Sections"]

HEADERS = 2
"""Units whose headers are kept: this one's and the next one's."""
CODES, PADDING = 3, 4


class Sections(wiring.Component):
    """Takes one beat a cycle unless two headers or the ring are full.

    Codes of a matrix wait until the walker has its plan, so that two matrices never mix in the
    ring; a header of the next matrix may come earlier.

    Members
    -------
    plan : plans of the matrices, in order. beats : the channel.
    next : the plan of this matrix, for the walker.
    data : the beat, for whoever is written.
    write : a header section is written: scales, second section, index. place, bank : where.
    push : a beat of codes goes to the ring. room : it can.
    headers : units whose header is complete. freed : the walker is done with one.
    finish : the walker is done with its matrix; what is left of its codes is padding.
    tables : table banks in use here.
    """

    def __init__(self, beat_bytes: int, k_lanes: int) -> None:
        self.beat_bytes, self.k_lanes = beat_bytes, k_lanes
        plan = stream.Signature(Plan(k_lanes))
        super().__init__({
            "plan": In(plan),
            "beats": In(stream.Signature(8 * beat_bytes)),
            "next": Out(plan),
            "data": Out(8 * beat_bytes),
            "write": Out(3),
            "place": Out(log2(INDEX_BYTES // beat_bytes)),
            "bank": Out(1),
            "push": Out(1),
            "room": In(1),
            "headers": Out(range(HEADERS + 1)),
            "freed": In(1),
            "finish": In(1),
            "tables": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        plan = Signal(Plan(self.k_lanes))
        active, handed, drop = Signal(), Signal(), Signal()
        section, left = Signal(unsigned(3)), Signal(24)
        take, last, end = Signal(), Signal(), Signal()
        units = Signal.like(plan.units)
        ready = Signal()
        with m.Switch(section):
            with m.Case(CODES):
                m.d.comb += ready.eq(drop | (handed & self.room))
            with m.Case(PADDING):
                m.d.comb += ready.eq(1)
            with m.Default():
                m.d.comb += ready.eq(self.headers != HEADERS)
        following = _following(m, plan, section)
        m.d.comb += [
            self.beats.ready.eq(active & ready),
            take.eq(self.beats.ready & self.beats.valid),
            last.eq(take & (left == 0)),
            end.eq(last & (following == 0)),
            self.data.eq(self.beats.payload),
            self.push.eq(take & (section == CODES) & ~drop),
            self.next.payload.eq(plan),
            self.next.valid.eq(active & ~handed),
            self.tables.eq((active & plan.table) << plan.bank),
        ]
        for k in range(3):
            m.d.comb += self.write[k].eq(take & (section == k))
        with m.If(self.next.valid & self.next.ready):
            m.d.sync += handed.eq(1)
        with m.If(take):
            m.d.sync += [left.eq(left - 1), self.place.eq(self.place + 1)]
        with m.If(last):
            m.d.sync += [
                section.eq(following - 1),
                left.eq(plan.sections[(following - 1)[:3]] - 1),
                self.place.eq(0),
            ]
        with m.If(end):
            first = _first(plan)
            m.d.sync += [
                section.eq(first), left.eq(plan.sections[first] - 1), units.eq(units - 1),
            ]  # fmt: skip
            with m.If(units == 0):
                m.d.sync += active.eq(0)
        with m.If(last & (section == CODES)):
            m.d.sync += drop.eq(0)
        with m.Elif(self.finish & handed & active & (section == CODES)):
            m.d.sync += drop.eq(1)
        self._headers(m, last & (section < CODES) & (following == CODES + 1))
        self._begin(m, plan, active, handed, end & (units == 0), section, left, units)
        return m

    def _headers(self, m: Module, complete: Any) -> None:
        with m.If(complete):
            m.d.sync += self.bank.eq(~self.bank)
        m.d.sync += self.headers.eq(self.headers + complete - self.freed)

    def _begin(self, m: Module, plan: Any, active: Any, handed: Any, over: Any, section: Any,
               left: Any, units: Any) -> None:  # fmt: skip
        m.d.comb += self.plan.ready.eq(~active | over)
        with m.If(self.plan.ready & self.plan.valid):
            new = self.plan.payload
            first = _first(new)
            m.d.sync += [
                plan.eq(new), active.eq(1), handed.eq(0), units.eq(new.units),
                section.eq(first), left.eq(new.sections[first] - 1), self.place.eq(0),
            ]  # fmt: skip


def _first(plan: Any) -> Any:
    """The first section of a unit; codes always exist."""
    exists = [plan.sections[k].any() for k in range(3)]
    return Mux(exists[0], 0, Mux(exists[1], 1, Mux(exists[2], 2, CODES)))


def _following(m: Module, plan: Any, section: Signal) -> Signal:
    """The section after this one plus 1, or 0 at the end of a unit."""
    second, index, padding = (plan.sections[k].any() for k in (1, 2, PADDING))
    out = Signal(3)
    after_second = Mux(index, 3, CODES + 1)
    with m.Switch(section):
        with m.Case(0):
            m.d.comb += out.eq(Mux(second, 2, after_second))
        with m.Case(1):
            m.d.comb += out.eq(after_second)
        with m.Case(2):
            m.d.comb += out.eq(CODES + 1)
        with m.Case(CODES):
            m.d.comb += out.eq(Mux(padding, PADDING + 1, 0))
    return out
