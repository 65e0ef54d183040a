"""From a command to a plan: sizes of sections and slices, counts of units; and the code tables."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import (
    CODES_PER_TABLE,
    INDEX_BYTES,
    SCALE_BYTES,
    Command,
    Plan,
    log2,
)
from flightllm.spec.formats import BLOCK, Second

__all__ = ["Planner"]

PAIRS = BLOCK // 2


def _times(value: Value, factor: Value) -> Value:
    """Their product from adders; a `*` could cost a DSP."""
    total: Value = Cat(*(bit & factor[0] for bit in value))
    for k in range(1, len(factor)):
        total = total + (Cat(*(bit & factor[k] for bit in value)) << k)
    return total


class Planner(wiring.Component):
    """Works one command ahead: the plan of the next matrix is ready when this one's beats end.

    A plan takes 4 cycles, with a code table 20. A matrix without rows or groups gives no plan.

    Parameters
    ----------
    beat_bytes, k_lanes : see `MatrixParameters`.
    full_pairs : pairs of full 8-bit levels go out together.
    twin : slices may have two parts.

    Members
    -------
    i : commands. o : plans, in order.
    banks : table banks in use further down.
    table_en, table_address, table_data : a write to the table memory, bank above index.
    fault : pulses when a command's format is none that the unit decodes; it is dropped.
    """

    def __init__(self, beat_bytes: int, k_lanes: int, full_pairs: bool, twin: bool) -> None:
        self.beat_bytes, self.k_lanes, self.full_pairs = beat_bytes, k_lanes, full_pairs
        self.twin = twin
        super().__init__({
            "i": In(stream.Signature(Command)),
            "o": Out(stream.Signature(Plan(k_lanes))),
            "banks": In(2),
            "table_en": Out(1),
            "table_address": Out(5),
            "table_data": Out(8),
            "fault": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        command, plan = Signal(Command), Signal(Plan(self.k_lanes))
        total = Signal(len(command.pairs) + len(command.kgroups))
        singles = Signal(len(command.singles) + len(command.kgroups))
        bad, bank, index = Signal(), Signal(), Signal(range(CODES_PER_TABLE))
        m.d.comb += self.o.payload.eq(plan)
        with m.FSM():
            with m.State("idle"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += command.eq(self.i.payload)
                with m.If(self.i.valid):
                    m.next = "low"
            with m.State("low"):
                self._geometry(m, command, plan)
                m.d.sync += [
                    bad.eq(self._bad(command)),
                    total.eq(_times(command.pairs, command.kgroups[:8])),
                    singles.eq(_times(command.kgroups, command.singles) if self.twin else 0),
                ]
                m.next = "high"
            with m.State("high"):
                m.d.sync += total.eq(total + (_times(command.pairs, command.kgroups[8:]) << 8))
                m.next = "count"
            with m.State("count"):
                self._counts(m, command, plan, total, singles)
                m.d.sync += plan.bank.eq(bank)
                m.d.comb += self.fault.eq(bad)
                with m.If(bad | (total == 0)):
                    m.next = "idle"
                with m.Elif(command.word.table):
                    m.next = "table"
                with m.Else():
                    m.next = "ready"
            with m.State("table"):
                m.d.comb += [
                    self.table_en.eq(~self.banks.bit_select(bank, 1)),
                    self.table_address.eq(Cat(index, bank)),
                    self.table_data.eq(command.table[0]),
                ]
                with m.If(self.table_en):
                    m.d.sync += index.eq(index + 1)
                    m.d.sync += command.table.eq(command.table.as_value() >> 8)
                    with m.If(index == CODES_PER_TABLE - 1):
                        m.d.sync += bank.eq(~bank)
                        m.next = "ready"
            with m.State("ready"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "idle"
        return m

    def _bad(self, command: Any) -> Value:
        """The formats that `pack_matrix` and the KV cache never make."""
        word = command.word
        sparse, group = word.kept.any(), word.group
        split_groups = (group & (group - 1))[:5].any()
        sparse_bad = (
            split_groups
            | ((group == 1) & (word.kept == 1))
            | (word.indices & (word.kept == 3))
            | (group[4] & word.private & ~(word.indices & (word.kept == 1)))
        )
        whole_bad = sparse | word.scale | word.second.any() | word.table | (group != BLOCK // 16)
        return (
            (word.bits < 2) | (word.bits > 8) | (group == 0) | (group > 16)
            | (word.table & ((word.bits > 4) | (word.second == Second.ZERO)))
            | (word.bytewise & (word.bits != 4))
            | (sparse & sparse_bad) | (word.whole & whole_bad)
        )  # fmt: skip

    def _geometry(self, m: Module, command: Any, plan: Any) -> None:
        """Everything but the counts; groups are in units of 16 elements, codes of one row."""
        lanes, beat = self.k_lanes, log2(self.beat_bytes)
        word, dense = command.word, ~command.word.kept.any()
        last = (word.group << 4) - 1  # last element of a group
        reach = log2(lanes) + 1  # exponent of a sparse slice's elements
        span, join = Signal(unsigned(reach + 1)), Signal()
        m.d.comb += span.eq(Mux(dense & ~join, last[: reach - 1], last[:reach]) + 1)
        codes = Mux(dense, span, (span >> 4) << word.kept)
        full = Mux(dense, lanes << join, (lanes // 8) << word.kept)
        group_codes = Mux(dense, word.group << 4, word.group << word.kept)
        self._twins(m, command, plan, join, group_codes)
        size = Signal(24)  # bytes of codes in a unit: 2 rows, 16 or `pairs` pair-groups
        m.d.comb += size.eq(
            _times(Mux(word.whole, command.pairs << 3, group_codes << 2), word.bits)
        )
        beats = (size + self.beat_bytes - 1) >> beat
        padded = ((size + 63) >> 6) << (6 - beat)
        index = self._index_beats(word)
        wide = (word.bits == 8) | word.table | (word.second == Second.ZERO)
        m.d.sync += [
            plan.sections[0].eq(Mux(word.scale, SCALE_BYTES >> beat, 0)),
            plan.sections[1].eq(Mux(word.second.any(), SCALE_BYTES >> beat, 0)),
            plan.sections[2].eq(Mux(dense, 0, index)),
            plan.sections[3].eq(beats),
            plan.sections[4].eq(padded - beats),
            plan.header.eq(word.scale | word.second.any() | ~dense),
            plan.slices.eq(Mux(dense & ~join, last >> (reach - 1), last >> reach)),
            plan.bytes.eq(_times(full, word.bits) >> 2),
            plan.last_bytes.eq(_times(codes, word.bits) >> 2),
            plan.last_span.eq(span),
            plan.select.eq(Mux(word.bytewise, 1, word.bits[:3])),
            plan.sign.eq(Mux(word.second == Second.ZERO, 0, (1 << word.bits) >> 1)),
            plan.zero.eq(word.second == Second.ZERO),
            plan.table.eq(word.table),
            plan.dense.eq(dense),
            plan.kept.eq(word.kept),
            plan.indices.eq(word.indices),
            plan.private.eq(word.private & ~dense),
            plan.split.eq((word.private & ~dense) | (wide & (not self.full_pairs))),
            plan.sums.eq(command.sums),
        ]
        shift = Cat(*(word.group[k] for k in range(1, 5)))  # one-hot above 1
        exponent = Cat(shift[0] | shift[2], shift[1] | shift[2], shift[3])
        half = word.indices & (word.kept == 1)
        m.d.sync += plan.lanes_shift.eq(exponent - half)

    def _twins(self, m: Module, command: Any, plan: Any, join: Signal, group_codes: Any) -> None:
        """What second parts of slices hold; both parts come from 2 * k_lanes bytes."""
        word, lanes, narrow = command.word, self.k_lanes, command.word.bits <= 4
        dense = ~word.kept.any()
        sparse_fits = ~word.private & (word.group <= lanes // 8)
        fits = command.twin & (dense | sparse_fits)
        matches = [
            (group_codes == lanes >> shift) & (narrow if shift == 0 else 1)
            for shift in range(log2(lanes) - 1)
        ]
        if self.twin:
            m.d.comb += join.eq(command.twin & dense & narrow & (word.group > lanes // 16))
        m.d.sync += [
            plan.join.eq(join),
            plan.couple.eq(fits & Cat(matches).any() if self.twin else 0),
            plan.source.eq(Cat(
                Cat(match for shift, match in enumerate(matches) if shift >> bit & 1).any()
                for bit in range(3)
            )),
        ]  # fmt: skip

    def _index_beats(self, word: Any) -> Value:
        """A mask takes 16 bits for 16 elements; two 4-bit indices take 8."""
        half = word.indices & (word.kept == 1)
        size = (word.group << 5) << word.private >> half
        assert INDEX_BYTES >= 512  # the largest that `_bad` lets through
        return ((size + 63) >> 6) << (6 - log2(self.beat_bytes))

    def _counts(self, m: Module, command: Any, plan: Any, total: Value, singles: Value) -> None:
        coupled = (total - Mux(command.word.cyclic, 0, singles))[: len(total)]
        last = (total - 1)[: len(total)]
        whole, pairs = command.word.whole, command.pairs - 1
        m.d.sync += [
            plan.units.eq(Mux(whole, command.kgroups - 1, last >> log2(PAIRS))),
            plan.pairs.eq(Mux(whole, pairs, PAIRS - 1)),
            plan.final_pairs.eq(Mux(whole, pairs, last[: log2(PAIRS)])),
            plan.coupled.eq(Mux(whole, (1 << len(plan.coupled)) - 1, (coupled >> log2(PAIRS)) + 1)),
            plan.coupled_pairs.eq(coupled[: log2(PAIRS)]),
        ]
