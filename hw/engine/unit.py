"""The matrix engine of one core: its parts, and the decode units beside its channels."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.chain import cell_latency
from flightllm.hw.decode.unit import DecodeUnit
from flightllm.hw.engine.channel import ChannelArray
from flightllm.hw.engine.epilogue import Epilogue
from flightllm.hw.engine.job import Mode
from flightllm.hw.engine.sequencer import FLAGS, Sequencer
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.engine.start import UNITS, Starter
from flightllm.hw.engine.sums import ActivationSums
from flightllm.hw.engine.timing import ArrayControl, Stages
from flightllm.hw.engine.windows import WindowStore
from flightllm.hw.frontend import semaphore_signature
from flightllm.hw.memory.buffers import read_port, window_port, write_port
from flightllm.hw.sharing import shared
from flightllm.spec.formats import Second

__all__ = ["MatrixEngine"]


@shared()
class MatrixEngine(wiring.Component):
    """Executes MM and MV; see docs/units/engine.md.

    Parameters
    ----------
    size : of the engine.
    beat_bytes : of a beat of a channel.
    dsp_kind, chain_length, modelled : see `Cell`. full_pairs : see `DecodeUnit`.

    Members
    -------
    mm_queue, mv_queue, mm_semaphores, mv_semaphores : to dispatcher and semaphores.
    beats : In, streams, one a channel: the weight FIFOs.
    a : Out(window_port(2 * k_lanes)). f_read : Out(read_port(lanes)).
    f_write : Out(write_port(lanes, 32)). params : Out(read_port(1)), of the parameter memory.
    busy : Out, an instruction runs. stepping : Out, the array takes a step.
    fault : Out, a pulse: a format, a number of vectors, or of rows of a whole matrix, that the
        engine does not have.
    """

    def __init__(self, size: EngineSize, beat_bytes: int, dsp_kind: str = "inferred",
                 chain_length: int = 8, full_pairs: bool = True,
                 modelled: bool = False) -> None:  # fmt: skip
        self.size, self.beat_bytes, self.full_pairs = size, beat_bytes, full_pairs
        self._cell = (size.k_lanes, dsp_kind, chain_length, modelled)
        ports: dict[str, Any] = {}
        for name in UNITS:
            ports[f"{name}_queue"] = In(stream.Signature(32))
            ports[f"{name}_semaphores"] = Out(semaphore_signature)
        super().__init__(ports | {
            "beats": In(stream.Signature(8 * beat_bytes)).array(size.channels),
            "a": Out(window_port(size.window_bytes)),
            "f_read": Out(read_port(size.lanes)),
            "f_write": Out(write_port(size.lanes, 32)),
            "params": Out(read_port(1)),
            "busy": Out(1), "stepping": Out(1), "fault": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        size = self.size
        stages = Stages(size, cell_latency(*self._cell[:3]))
        m.submodules.starter = starter = Starter(size)
        m.submodules.windows = windows = WindowStore(size)
        m.submodules.sequencer = sequencer = Sequencer(size, stages.distance)
        m.submodules.control = control = ArrayControl(size, stages)
        m.submodules.sums = sums = ActivationSums(size, stages.sums + 1)
        channels = [ChannelArray(size, stages, *self._cell[1:]) for _ in range(size.channels)]
        m.submodules.epilogue = epilogue = Epilogue(
            size, channels[0].signature.members["read"].shape
        )
        for name in (f"{kind}_{port}" for kind in UNITS for port in ("queue", "semaphores")):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(starter, name))
        for name, part in (
            ("a", windows), ("f_read", epilogue), ("f_write", epilogue), ("params", starter),
        ):  # fmt: skip
            wiring.connect(m, getattr(part, name), wiring.flipped(getattr(self, name)))
        m.d.comb += [starter.done.eq(epilogue.done), self.busy.eq(starter.busy)]
        for part in (windows, sequencer, epilogue):
            m.d.comb += [part.job.eq(starter.job), part.start.eq(starter.start)]
        for source, target, names in (
            (starter, epilogue, ("base",)),
            (starter, sequencer, ("has_last",)),
            (windows, sequencer, ("full", "batches")),
            (sequencer, windows, ("free", "batch", "place", "half", "dense", "join")),
            (sequencer, control, ("step_valid", "step")),
            (windows, sums, ("filled", "bank")),
            (sequencer, sums, ("batch",)),
            (control, epilogue, ("closed",)),
            (epilogue, sequencer, ("freed",)),
        ):
            m.d.comb += [getattr(target, name).eq(getattr(source, name)) for name in names]
        word, mode = starter.job.word, Signal(Mode)
        m.d.comb += [
            mode.scaled.eq(word.scale),
            mode.minima.eq(word.second == Second.MINIMUM),
            mode.dense.eq(~word.kept.any()),
            mode.twin.eq(starter.job.twin),
            windows.twin.eq(mode.twin), sums.twin.eq(mode.twin),
            control.mode.eq(mode),
            sums.data.eq(self.a.data), sums.elements.eq(word.group << 4),
            self.stepping.eq(sequencer.step_valid),
        ]
        faults = [starter.fault, sequencer.fault]
        for c, array in enumerate(channels):
            m.d.comb += [
                array.mode.eq(mode), array.windows.eq(windows.windows), array.ones.eq(sums.sums),
                array.control.eq(control.control), array.read.eq(epilogue.read),
                epilogue.results[c].eq(array.results), epilogue.emitted[c].eq(array.emitted),
            ]  # fmt: skip
            faults.append(self._channel(m, c, array, starter, sequencer))
        m.d.comb += self.fault.eq(Cat(faults).any())
        return m

    def _channel(self, m: Module, c: int, array: ChannelArray, starter: Any,
                 sequencer: Any) -> Signal:  # fmt: skip
        """Decode unit of channel `c`, and the steps it takes part in; the unit's fault."""
        decode = DecodeUnit(
            self.beat_bytes, self.size.k_lanes, self.full_pairs, self.size.twin
        )
        m.submodules[f"decode_{c}"], m.submodules[f"channel_{c}"] = decode, array
        wiring.connect(m, wiring.flipped(self.beats[c]), decode.beats)
        wiring.connect(m, starter.commands[c], decode.commands)
        m.d.comb += [
            sequencer.valid[c].eq(decode.slices.valid),
            decode.slices.ready.eq(sequencer.ready[c]),
            array.slice.eq(decode.slices.payload),
            array.step.eq(sequencer.step),
            array.step_valid.eq(sequencer.step_valid),
        ]
        for name in FLAGS:
            m.d.comb += sequencer.flags[c][name].eq(decode.slices.payload[name])
        return decode.fault
