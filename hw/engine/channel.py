"""The array beside one channel: cells, lanes and the memory of finished results."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
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

__all__ = ["ChannelArray"]

HALF_ONE = 0x3C00


class ChannelArray(wiring.Component):
    """Multiplies this channel's slices with every cell's windows.

    Parameters
    ----------
    size : of the engine. stages : of the array. cells : what multiplies, `size.cells` of them.

    Members
    -------
    slice : In, the slice of the step that starts. step : In, that step.
    step_valid : In, it does. windows : In, a cycle later.
    control : In, for the lanes. mode : In. ones : In, a cell, see `Lane`.
    read : In, address in the result memory: batch, part, half.
    results : Out, `out_lanes` words a cell from there, in the next cycle.
    emitted : Out, fp16, the second section of the rows of that half and part.
    """

    def __init__(self, size: EngineSize, stages: Stages, cells: list[Cell]) -> None:
        self.size, self.stages, self.cells = size, stages, cells
        batch = Step(size).members["batch"]
        super().__init__({
            "slice": In(Slice(size.k_lanes)),
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
        codes = Signal(self.slice.codes.shape(), reset_less=True)
        picks = Signal(self.slice.picks.shape(), reset_less=True)
        rows = Signal(2, reset_less=True)
        m.d.sync += [
            codes.eq(self.slice.codes), picks.eq(self.slice.picks), rows.eq(self.slice.rows),
        ]  # fmt: skip
        factors = self._factors(m)
        for c, cell in enumerate(self.cells):
            m.submodules[f"cell_{c}"] = cell
            m.d.comb += [
                cell.codes.eq(codes), cell.picks.eq(picks), cell.rows.eq(rows),
                cell.windows.eq(self.windows[c]),
            ]  # fmt: skip
            words = []
            for row in range(2):
                m.submodules[f"lane_{c}_{row}"] = lane = Lane(size, len(cell.sums[row]))
                m.d.comb += [
                    lane.sum.eq(cell.sums[row]), lane.ones.eq(self.ones[c]),
                    lane.control.eq(self.control),
                    lane.mode.eq(self.mode),
                    lane.scale.eq(factors["scale"][row]),
                    lane.minimum.eq(factors["second"][row]),
                ]  # fmt: skip
                words.append(lane.result)
            self._results(m, c, Cat(words))
        self._emitted(m)
        return m

    def _factors(self, m: Module) -> dict[str, list[Any]]:
        """Scales and minima as float32, at stage `scaled`."""
        out: dict[str, list[Any]] = {"scale": [], "second": []}
        for name, values in out.items():
            for row in range(2):
                value: Any = getattr(self.slice, name)[row]
                if name == "scale":
                    value = Mux(self.mode.scaled, value, HALF_ONE)
                for k in range(self.stages.scaled - 1):
                    later = Signal(16, name=f"{name}_{row}_{k + 1}", reset_less=True)
                    m.d.sync += later.eq(value)
                    value = later
                m.submodules[f"{name}_{row}_widen"] = widen = HalfToFloat(1)
                m.d.comb += [widen.en.eq(1), widen.i.eq(value)]
                values.append(widen.o)
        return out

    def _slots(self, pair: Any) -> tuple[Any, Any]:
        """Part of a block's rows that a pair belongs to, and its place there."""
        inside = log2(self.size.out_lanes // 2)
        return pair[inside:], pair[:inside]

    def _results(self, m: Module, cell: int, words: Any) -> None:
        """A pair of rows a write, `out_lanes` rows a read."""
        size, control = self.size, self.control
        places = size.out_lanes // 2
        part, place = self._slots(control.pair)
        m.submodules[f"results_{cell}"] = store = Ram(
            32 * size.out_lanes, 1 << len(self.read.as_value()), 64
        )  # fmt: skip
        m.d.comb += [
            store.write_enable.eq(Mux(control.result_en, Const(1, places) << place, 0)),
            store.write_address.eq(Cat(control.batch_out, part, control.half)),
            store.write_data.eq(words.replicate(places)),
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
        m.d.comb += [
            store.write_enable.eq(Mux(write, Const(1, places) << place, 0)),
            store.write_address.eq(Cat(part, self.step.half)),
            store.write_data.eq(self.slice.second.as_value().replicate(places)),
            store.read_enable.eq(1),
            store.read_address.eq(Cat(self.read.part, self.read.half)),
            self.emitted.eq(store.read_data),
        ]
