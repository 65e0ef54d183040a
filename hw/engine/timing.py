"""When a step reaches which stage of the array: one delay line for all lanes."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.engine.job import Mode
from flightllm.hw.engine.sequencer import Step
from flightllm.hw.engine.size import EngineSize

__all__ = ["ArrayControl", "Control", "Stages"]


class Stages:
    """Stage numbers, in cycles from the step's start in the sequencer.

    Attributes
    ----------
    cells : slice and windows enter the cells. sums : their sums are there; of twins both parts'.
    total : the group's sum, of integer formats of all groups so far.
    scaled : the sum as float32 meets its scale.
    accumulate : term and accumulator enter the adder. result : the new accumulator is there.
    late : with minima the last two come that much later.
    distance : cycles between two visits of an accumulator, at least.
    """

    def __init__(self, size: EngineSize, cell_latency: int) -> None:
        self.cells = 1
        self.sums = self.cells + cell_latency + size.twin
        self.total = self.sums + 2
        self.scaled = self.total + size.convert
        self.accumulate = self.scaled + size.mul
        self.result = self.accumulate + size.add
        self.late = size.add
        self.distance = size.add + 1


class Control(data.StructLayout):
    """What every lane does in this cycle.

    Members
    -------
    add_parts : the sums of a twin slice's parts belong together; a cycle before `valid`.
    valid, fresh, fresh_ones, ones, batch : for the sums that come from the cells.
    clear_total : no integers from before are added. clear : no float32 from before is.
    read, write, write_en : accumulator memory.
    result_en, batch_out, half, pair, couple : result memory, where this cycle's results go.
    """

    def __init__(self, size: EngineSize) -> None:
        step = Step(size).members
        super().__init__({
            "add_parts": 1, "valid": 1, "fresh": 1, "fresh_ones": 1, "ones": 1,
            "batch": step["batch"],
            "clear_total": 1, "clear": 1,
            "read": step["entry"], "write": step["entry"], "write_en": 1,
            "result_en": 1, "batch_out": step["batch"], "half": 1, "pair": step["pair"],
            "couple": 1,
        })  # fmt: skip


class ArrayControl(wiring.Component):
    """Delays steps.

    Members
    -------
    step_valid, step : In, from the sequencer. mode : In, of the format.
    control : Out, for the lanes. closed : Out, a block's results are all in the result memory
        from the next cycle on.
    """

    def __init__(self, size: EngineSize, stages: Stages) -> None:
        self.size, self.stages = size, stages
        super().__init__({
            "step_valid": In(1), "step": In(Step(size)), "mode": In(Mode),
            "control": Out(Control(size)), "closed": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        stages, step = self.stages, self.step
        end = stages.result + stages.late
        valid = [self.step_valid, *(Signal(name=f"valid_{k}") for k in range(1, end + 1))]
        steps: list[Any] = [step]
        for k in range(1, end + 1):
            steps.append(Signal(step.shape(), name=f"step_{k}", reset_less=True))
            m.d.sync += [valid[k].eq(valid[k - 1]), steps[k].eq(steps[k - 1])]
        control, scaled, sums = self.control, self.mode.scaled, steps[stages.sums]
        # The end of the pipeline, where minima are added or not.
        before, entering, result = (Signal(step.shape(), name=name) for name in (
            "before", "entering", "result",
        ))  # fmt: skip
        done = Signal()
        for signal, stage in (
            (before, stages.accumulate - 1), (entering, stages.accumulate), (result, stages.result),
        ):  # fmt: skip
            late = steps[stage + stages.late].as_value()
            m.d.comb += signal.eq(Mux(self.mode.minima, late, steps[stage].as_value()))
        m.d.comb += [
            done.eq(Mux(self.mode.minima, valid[end], valid[stages.result])),
            control.add_parts.eq(self.mode.twin & ~steps[stages.sums - 1].couple),
            control.valid.eq(valid[stages.sums]),
            control.fresh.eq(sums.fresh),
            control.fresh_ones.eq(sums.fresh_ones),
            control.ones.eq(sums.ones),
            control.batch.eq(sums.batch),
            control.clear_total.eq(scaled | steps[stages.sums + 1].begin),
            control.clear.eq(~scaled | entering.begin),
            control.read.eq(Mux(scaled, before.entry, sums.entry)),
            control.write.eq(Mux(scaled, result.entry, steps[stages.total].entry)),
            control.write_en.eq(Mux(
                scaled, done & result.end, valid[stages.total] & steps[stages.total].end
            )),
            control.result_en.eq(done & result.end & result.finish),
            control.batch_out.eq(result.batch),
            control.half.eq(result.half),
            control.pair.eq(result.pair),
            control.couple.eq(result.couple),
            self.closed.eq(done & result.close),
        ]
        return m
