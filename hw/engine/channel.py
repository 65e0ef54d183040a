"""The array beside one channel: cells, lanes and the memory of finished results."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.decode.layout import Slice, log2
from flightllm.hw.engine.lane import Lane
from flightllm.hw.engine.sequencer import Step
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.engine.timing import Control, Stages
from flightllm.hw.engine.windows import window_layout
from flightllm.hw.floating import Float16, HalfToFloat
from flightllm.hw.memory.ram import Ram

__all__ = ["CellFactory", "ChannelArray", "sum_bits"]

CellFactory = Callable[[], Any]
"""Makes a cell: `codes` (2 rows of k_lanes int8), `picks`, `windows` In; `sums` (2) Out, `latency`
cycles later."""
HALF_ONE = 0x3C00


class ChannelArray(wiring.Component):
    """Multiplies this channel's slices with every cell's windows.

    Parameters
    ----------
    size : of the engine. stages : of the array. cell : makes a cell. sum_bits : of its sums.

    Members
    -------
    slice : In, the slice of the step that starts. step : In, that step.
    step_valid : In, it does. windows : In, a cycle later.
    control : In, for the lanes. scaled_format, minima : In.
    read : In, address in the result memory: batch, part, half.
    results : Out, `out_lanes` words a cell from there, in the next cycle.
    emitted : Out, fp16, the second section of the rows of that half and part.
    """

    def __init__(self, size: EngineSize, stages: Stages, cell: CellFactory, sum_bits: int) -> None:
        self.size, self.stages, self.cell, self.sum_bits = size, stages, cell, sum_bits
        batch = Step(size).members["batch"]
        super().__init__({
            "slice": In(Slice(size.k_lanes)),
            "step": In(Step(size)), "step_valid": In(1),
            "windows": In(data.ArrayLayout(window_layout(size.k_lanes), size.cells)),
            "control": In(Control(size)),
            "scaled_format": In(1), "minima": In(1),
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
        m.d.sync += [codes.eq(self.slice.codes), picks.eq(self.slice.picks)]
        factors = self._factors(m)
        for c in range(size.cells):
            m.submodules[f"cell_{c}"] = cell = self.cell()
            m.d.comb += [
                cell.codes.eq(codes), cell.picks.eq(picks), cell.windows.eq(self.windows[c]),
            ]  # fmt: skip
            words = []
            for row in range(2):
                m.submodules[f"lane_{c}_{row}"] = lane = Lane(size, self.sum_bits)
                m.d.comb += [
                    lane.sum.eq(cell.sums[row]),
                    lane.control.eq(self.control),
                    lane.scaled_format.eq(self.scaled_format), lane.minima.eq(self.minima),
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
                    value = Mux(self.scaled_format, value, HALF_ONE)
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


def sum_bits(k_lanes: int) -> int:
    """Of the sum of k_lanes products of INT8 numbers, activations within 127."""
    return (128 * 127 * k_lanes).bit_length() + 1
