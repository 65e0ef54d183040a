"""The array beside one channel: cells, lanes and the memory of finished results."""

from itertools import product
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain import Cell, window_layout
from flightllm.hw.decode.layout import Slice, log2
from flightllm.hw.engine.job import Mode
from flightllm.hw.engine.lane import Lane
from flightllm.hw.engine.sequencer import Step
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.engine.sums import ONES_BITS
from flightllm.hw.engine.timing import Control, Stages
from flightllm.hw.floating import Float16, HalfToFloat
from flightllm.hw.memory.ram import Ram
from flightllm.hw.sharing import shared

__all__ = ["ChannelArray"]

HALF_ONE = 0x3C00


@shared()
class ChannelArray(wiring.Component):
    """Multiplies this channel's slices with every cell's windows.

    Parameters
    ----------
    size : of the engine. stages : of the array. dsp_kind, chain_length, modelled : see `Cell`.

    Members
    -------
    slice : In, the slice of the step that starts. step : In, that step.
    step_valid : In, it does. windows : In, a cycle later.
    control : In, for the lanes. mode : In. ones : In, a cell, see `Lane`.
    read : In, address in the result memory: batch, part, half.
    results : Out, `out_lanes` words a cell from there, in the next cycle.
    emitted : Out, fp16, the second section of the rows of that half and part.
    """

    def __init__(self, size: EngineSize, stages: Stages, dsp_kind: str, chain_length: int,
                 modelled: bool) -> None:  # fmt: skip
        self.size, self.stages = size, stages
        self._cell = (size.k_lanes, dsp_kind, chain_length, modelled)
        batch = Step(size).members["batch"]
        super().__init__({
            "slice": In(Slice(size.k_lanes, size.twin)),
            "step": In(Step(size)), "step_valid": In(1),
            "windows": In(data.ArrayLayout(window_layout(size.k_lanes), size.cells)),
            "control": In(Control(size)),
            "mode": In(Mode),
            "ones": In(data.ArrayLayout(signed(ONES_BITS), size.cells)),
            "read": In(data.StructLayout({
                "batch": batch, "part": log2(size.parts), "half": 1,
            })),
            "results": Out(data.ArrayLayout(
                data.ArrayLayout(32, size.out_lanes), size.cells
            )),
            "emitted": Out(data.ArrayLayout(Float16, size.out_lanes)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = self.size
        given = self._given(m)
        factors = self._factors(m)
        sums = []
        for c in range(size.cells):
            m.submodules[f"cell_{c}"] = cell = Cell(*self._cell)
            m.d.comb += cell.windows.eq(self.windows[c])
            for name, values in given.items():
                value = values[0]
                if c == 1 and len(values) > 1:
                    value = Mux(self.mode.twin, values[1], value)
                m.d.comb += getattr(cell, name).eq(value)
            sums.append([cell.sums[row] for row in range(2)])
        if size.twin:
            sums = self._paired(m, sums)
        words = []
        for c, rows in enumerate(sums):
            own = []
            for row, value in enumerate(rows):
                m.submodules[f"lane_{c}_{row}"] = lane = Lane(size, len(value))
                m.d.comb += [
                    lane.sum.eq(value), lane.ones.eq(self.ones[c]),
                    lane.control.eq(self.control),
                    lane.mode.eq(self.mode),
                    lane.scale.eq(factors["scale"][row, c == 1]),
                    lane.minimum.eq(factors["second"][row, c == 1]),
                ]  # fmt: skip
                own.append(lane.result)
            words.append(Cat(own))
        for c in range(size.cells):
            self._results(m, c, words)
        self._emitted(m)
        return m

    def _given(self, m: Module) -> dict[str, list[Any]]:
        """What the cells take of a slice, a cycle later, by part."""
        out: dict[str, list[Any]] = {}
        for name in ("codes", "picks", "rows"):
            field = getattr(self.slice, name)
            parts = [field] if name == "rows" else [part.as_value() for part in field]
            out[name] = []
            for k, part in enumerate(parts):
                later = Signal(len(part), name=f"{name}_{k}", reset_less=True)
                m.d.sync += later.eq(part)
                out[name].append(later)
        return out

    def _paired(self, m: Module, sums: list[list[Any]]) -> list[list[Any]]:
        """Both parts of a twin slice added where they are of the same pair of rows."""
        out: list[list[Any]] = []
        for c, rows in enumerate(sums):
            out.append([])
            for row, value in enumerate(rows):
                total = Signal(signed(len(value) + 1), name=f"paired_{c}_{row}", reset_less=True)
                more = Mux(self.control.add_parts, sums[1][row], 0) if c == 0 else 0
                m.d.sync += total.eq(value + more)
                out[-1].append(total)
        return out

    def _factors(self, m: Module) -> dict[str, dict[tuple[int, bool], Any]]:
        """Scales and minima as float32, at stage `scaled`; by row, and of the second cell apart."""
        out: dict[str, dict[tuple[int, bool], Any]] = {"scale": {}, "second": {}}
        for name, values in out.items():
            field = getattr(self.slice, name)
            for row, other in product(range(2), (False, True)):
                value: Any = field[0][row]
                if other and not self.size.twin:
                    values[row, other] = values[row, False]
                    continue
                if other:
                    value = Mux(self.slice.couple, field[1][row], value)
                if name == "scale":
                    value = Mux(self.mode.scaled, value, HALF_ONE)
                values[row, other] = self._widened(m, value, f"{name}_{row}_{int(other)}")
        return out

    def _widened(self, m: Module, value: Any, name: str) -> Any:
        for k in range(self.stages.scaled - 1):
            later = Signal(16, name=f"{name}_{k + 1}", reset_less=True)
            m.d.sync += later.eq(value)
            value = later
        m.submodules[f"{name}_widen"] = widen = HalfToFloat(1)
        m.d.comb += [widen.en.eq(1), widen.i.eq(value)]
        return widen.o

    def _slots(self, pair: Any) -> tuple[Any, Any]:
        """Part of a block's rows that a pair belongs to, and its place there."""
        inside = log2(self.size.out_lanes // 2)
        return pair[inside:], pair[:inside]

    def _results(self, m: Module, cell: int, words: list[Any]) -> None:
        """A pair of rows a write, of a twin slice two; `out_lanes` rows a read."""
        size, control = self.size, self.control
        places = size.out_lanes // 2
        part, place = self._slots(control.pair)
        m.submodules[f"results_{cell}"] = store = Ram(
            32 * size.out_lanes, 1 << len(self.read.as_value()), 64
        )  # fmt: skip
        own = other = words[cell]
        if size.twin and cell == 0:
            other = Mux(control.couple, words[1], own)
        m.d.comb += [
            store.write_enable.eq(
                Mux(control.result_en, Cat(1, control.couple) << place, 0)[:places]
            ),
            store.write_address.eq(Cat(control.batch_out, part, control.half)),
            store.write_data.eq(_by_turns(own, other, places)),
            store.read_enable.eq(1),
            store.read_address.eq(self.read),
            self.results[cell].eq(store.read_data),
        ]

    def _emitted(self, m: Module) -> None:
        """As `_results`, of the second section, as soon as the step starts."""
        size = self.size
        places = size.out_lanes // 2
        part, place = self._slots(self.step.pair)
        m.submodules.emitted = store = Ram(16 * size.out_lanes, 2 * size.parts, 32)
        write = self.step_valid & self.step.end & self.step.finish
        own = other = self.slice.second[0].as_value()
        if size.twin:
            other = Mux(self.step.couple, self.slice.second[1].as_value(), own)
        m.d.comb += [
            store.write_enable.eq(Mux(write, Cat(1, self.step.couple) << place, 0)[:places]),
            store.write_address.eq(Cat(part, self.step.half)),
            store.write_data.eq(_by_turns(own, other, places)),
            store.read_enable.eq(1),
            store.read_address.eq(Cat(self.read.part, self.read.half)),
            self.emitted.eq(store.read_data),
        ]


def _by_turns(even: Any, odd: Any, places: int) -> Any:
    """Words for the places of a result: even pairs of rows, odd pairs of rows."""
    return Cat((even, odd)[k % 2] for k in range(places))
