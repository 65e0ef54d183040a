"""The decode unit: its parts, and the pipeline from bits to levels."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.headers import HeaderStore
from flightllm.hw.decode.layout import Command, Slice, Tag, log2
from flightllm.hw.decode.levels import (
    Tables,
    extract,
    extract_next,
    levels,
    live_blocks,
    place,
)
from flightllm.hw.decode.picks import aligned_index, choose, ranks, ranks_layout
from flightllm.hw.decode.plan import Planner
from flightllm.hw.decode.ring import CodeRing, align
from flightllm.hw.decode.sections import Sections
from flightllm.hw.decode.walker import Walker
from flightllm.hw.sharing import shared

__all__ = ["DecodeUnit"]


@shared()
class DecodeUnit(wiring.Component):
    """Beats of stored matrices in, slices of INT8 levels out: see docs/units/decode.md.

    Parameters
    ----------
    beat_bytes : 16, 32 or 64.
    k_lanes : lanes of a slice; a power of two from 16 to 2 * beat_bytes.
    full_pairs : pairs of full 8-bit levels share a multiplier; else such slices go out row by row.
    twin : slices have a second part, used for commands that want it.

    Members
    -------
    commands : In(stream of Command), one a matrix, in the order of the beats.
    beats : In(stream of 8 * beat_bytes bits).
    slices : Out(stream of Slice(k_lanes, twin)).
    fault : Out(1), pulses when a command has a format that no packer makes; it is dropped.
    busy : Out(1), a command, a beat's worth of codes or a slice is still inside.
    """

    def __init__(self, beat_bytes: int, k_lanes: int, full_pairs: bool = True,
                 twin: bool = False) -> None:  # fmt: skip
        if beat_bytes not in (16, 32, 64):
            raise ValueError(f"Beat must be of 16, 32 or 64 bytes, not {beat_bytes!r}")
        if k_lanes not in (16, 32, 64, 128) or k_lanes > 2 * beat_bytes:
            raise ValueError(
                f"Lanes must be a power of two from 16 to 2 * beat_bytes = {2 * beat_bytes}, "
                f"not {k_lanes!r}"
            )
        self.beat_bytes, self.k_lanes, self.full_pairs = beat_bytes, k_lanes, full_pairs
        self.twin = twin
        super().__init__({
            "commands": In(stream.Signature(Command)),
            "beats": In(stream.Signature(8 * beat_bytes)),
            "slices": Out(stream.Signature(Slice(k_lanes, twin))),
            "fault": Out(1),
            "busy": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = (self.beat_bytes, self.k_lanes)
        m.submodules.planner = planner = Planner(*size, self.full_pairs, self.twin)
        m.submodules.sections = sections = Sections(*size)
        m.submodules.headers = headers = HeaderStore(*size, self.twin)
        m.submodules.ring = ring = CodeRing(*size)
        m.submodules.walker = walker = Walker(self.k_lanes, self.twin)
        wiring.connect(m, wiring.flipped(self.commands), planner.i)
        wiring.connect(m, wiring.flipped(self.beats), sections.beats)
        wiring.connect(m, planner.o, sections.plan)
        wiring.connect(m, sections.next, walker.plan)
        for source, target, names in (
            (sections, headers, ("write", "place", "bank", "data")),
            (sections, ring, ("push", "data")),
            (ring, sections, ("room",)),
            (walker, sections, ("freed", "finish")),
            (sections, walker, ("headers",)),
            (headers, walker, ("scale", "second")),
            (walker, headers, ("pair", "index_place")),
            (ring, walker, ("available",)),
            (walker, ring, ("take", "round_up", "flush")),
        ):
            m.d.comb += [getattr(target, name).eq(getattr(source, name)) for name in names]
        m.d.comb += [headers.read_bank.eq(walker.bank), self.fault.eq(planner.fault)]
        self._pipeline(m, planner, sections, walker, ring, headers)
        return m

    def _pipeline(self, m: Module, planner: Any, sections: Any, walker: Any, ring: Any,
                  headers: Any) -> None:  # fmt: skip
        """Four steps: read, align, cut into codes, look up. A step waits only for the next one."""
        valid = [Signal(name=f"valid_{k}") for k in range(4)]
        step = [Signal(name=f"step_{k}") for k in range(4)]
        tags = [Signal(Tag(self.k_lanes, self.twin), name=f"tag_{k}") for k in range(3)]
        for k in range(4):
            onward = self.slices.ready if k == 3 else step[k + 1]
            m.d.comb += step[k].eq(~valid[k] | onward)
            with m.If(step[k]):
                m.d.sync += valid[k].eq(valid[k - 1] if k else walker.valid)
                if k < 3:
                    m.d.sync += tags[k].eq(tags[k - 1] if k else walker.tag)
        m.d.comb += [
            walker.step.eq(step[0]),
            self.slices.valid.eq(valid[3]),
            self.busy.eq(Cat(valid).any() | ~planner.i.ready | ~sections.plan.ready
                         | planner.o.valid | ~walker.plan.ready),
            planner.banks.eq(
                sections.tables | walker.tables
                | _banks(valid[0], tags[0]) | _banks(valid[1], tags[1]) | _banks(valid[2], tags[2])
            ),
        ]  # fmt: skip
        codes, ranked = self._fetch(m, step, tags, walker, ring, headers)
        self._look_up(m, planner, step[3], tags[2], codes, ranked)

    def _fetch(self, m: Module, step: Any, tags: Any, walker: Any, ring: Any, headers: Any) -> Any:
        """The first three steps: (codes by row, ranked index bits) of the third, by part."""
        def register(k: int, value: Any, name: str) -> Any:
            out = Signal.like(value, name=name, reset_less=True)
            with m.If(step[k]):
                m.d.sync += out.eq(value)
            return out

        head, offset = register(0, ring.head, "head"), register(0, ring.offset, "offset")
        block = register(0, headers.index, "index_block")
        places = [walker.index_place, walker.index_next][: 1 + self.twin]
        fine = [
            register(0, place[: log2(len(block) // 16)], f"index_fine_{k}")
            for k, place in enumerate(places)
        ]
        bits = register(1, align(head, offset, self.k_lanes), "bits")
        index = [
            register(
                1, aligned_index(block, place, tags[0].dense, 2 * self.k_lanes), f"index_{k}"
            )
            for k, place in enumerate(fine)
        ]
        rows = data.ArrayLayout(data.ArrayLayout(8, self.k_lanes), 2)
        found = [Signal(rows, name=f"found_{k}") for k in range(1 + self.twin)]
        extract(m, bits, tags[1].select, found[0])
        if self.twin:
            extract_next(m, bits, tags[1].select, tags[1].source, *found)
        ranked = [Signal(ranks_layout(self.k_lanes), name=f"ranked_{k}") for k in range(len(index))]
        for mask, out in zip(index, ranked):
            ranks(m, mask, out)
        return (
            [register(2, value, f"codes_{k}") for k, value in enumerate(found)],
            [register(2, value, f"ranked_2_{k}") for k, value in enumerate(ranked)],
        )

    def _look_up(self, m: Module, planner: Any, step: Any, tag: Any, codes: Any,
                 ranked: Any) -> None:  # fmt: skip
        tables = Tables(
            planner.table_en, planner.table_address, planner.table_data, tag.bank
        )
        made = self.slices.payload
        kept = Signal(2)
        m.d.comb += kept.eq(tag.kept)  # 0 when dense
        for part in range(1 + self.twin):
            placed = [place(list(row), kept) for row in codes[part]]
            live = live_blocks(tag.span, tag.dense, tag.couple, self.k_lanes // 8, part)
            second = tag.second[0]
            if part:
                second = Mux(tag.couple, tag.second[1].as_value(), second.as_value())
                second = data.View(tag.second[0].shape(), second)
            levels(m, tables, placed, tag, second, live, step, made.codes[part])
            picks = choose(
                m, ranked[part], tag.indices & ~tag.dense, tag.kept, f"pick_{part}"
            )
            with m.If(step):
                m.d.sync += made.picks[part].eq(Cat(picks))
        with m.If(step):
            for name in ("span", "dense", "rows", "sums", "again", "first", "last", "final",
                         "join", "couple", "scale", "second"):  # fmt: skip
                m.d.sync += getattr(made, name).eq(getattr(tag, name))


def _banks(valid: Any, tag: Any) -> Any:
    return (valid & tag.table) << tag.bank
