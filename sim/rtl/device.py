"""The generated hardware, Verilated, as a `flightllm.spec.device.Device`: bits and cycles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.rtl.library import Design, build_library
from flightllm.sim.rtl.simulation import MemoryModel, Simulation, Stop
from flightllm.sim.rtl.toolchain import SimulationError
from flightllm.sim.rtl.tracing import RunTrace, Tracer
from flightllm.spec import registers as host
from flightllm.spec.config import HwConfig
from flightllm.spec.device import RunResult, check_program
from flightllm.spec.errors import InputError, VerifyError
from flightllm.spec.faults import explain
from flightllm.spec.image import Program
from flightllm.spec.isa import UNITS, Register

__all__ = ["RtlDevice", "design_of"]

U8 = NDArray[np.uint8]
HOST = (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
COUNTERS = ("BUSY", "WAIT", "INSTRUCTIONS", "BEATS")
DONE = 2
"""STATUS.done."""
WATCHDOG = 20_000
"""Cycles without progress before the hardware gives up; more than any memory model takes."""
CHUNK = 100_000
"""Cycles between two looks at whether somebody wants to stop."""


def design_of(config: HwConfig, trace: bool = False) -> Design:
    """What `build_library` needs of a configuration's hardware."""

    def verilog() -> str:
        from flightllm.hw.verilog import verilog_text

        return verilog_text(config, trace=trace, modelled=True)

    return Design(
        "flightllm", sum(config.channels), config.beat_bytes, verilog, f"{config.digest} {trace}",
        config.cores if trace else 0,
    )  # fmt: skip


class RtlDevice:
    """Simulates the hardware of a configuration, cycle by cycle.

    Parameters
    ----------
    config : what is built. The build is kept, see `flightllm.sim.rtl.library.cache_folder`.
    memory : how the device memory behaves; left out, it answers after the configuration's
        `latency_cycles`.
    trace : called with a `TraceRecord` for each executed instruction.
    wave : file for a waveform (VCD), from cycle `wave_from` on.
    watchdog : cycles without progress that end a run with an error.
    cache : in place of the user's cache. progress : told what a build is doing.
    optimise : see `build_library`.
    design : built in place of what is generated, such as the same hardware after synthesis.

    Members
    -------
    build_seconds : what building took, or finding what was built before; known once loaded.
    sim : the simulation, once loaded; see `Simulation`.
    """

    name = "rtl"

    def __init__(self, config: HwConfig, *, memory: MemoryModel | None = None,
                 trace: Tracer | None = None, wave: Path | None = None, wave_from: int = 0,
                 watchdog: int = WATCHDOG, cache: Path | None = None,
                 progress: Callable[[str], None] | None = None,
                 optimise: str = "-O2", design: Design | None = None) -> None:  # fmt: skip
        self.config, self.build_seconds = config, 0.0
        self._design = design
        self._memory = memory or MemoryModel(
            latency=config.memory.latency_cycles, clock_mhz=config.clock_mhz
        )
        self._tracer, self._wave, self._wave_from = trace, wave, wave_from
        self._watchdog, self._cache, self._progress = watchdog, cache, progress
        self._optimise = optimise
        self._sim: Simulation | None = None
        self._trace: RunTrace | None = None

    @property
    def sim(self) -> Simulation:
        """The simulation of the loaded program."""
        if self._sim is None:
            raise InputError("no program is loaded: call load(program) first")
        return self._sim

    def load(self, program: Program) -> None:
        """Take a program: build the hardware if need be, fill its memory, upload the code.

        Raises
        ------
        InputError
            When the program was made for other hardware or carries no weights.
        SimulationError
            When the hardware cannot be built, or is not what the registers say.
        """
        check_program(self.config, program)
        self.close()
        traced = self._tracer is not None
        begin = time.perf_counter()
        library = build_library(
            self._design or design_of(self.config, traced), self._wave is not None, self._cache,
            self._progress, self._optimise,
        )
        self.build_seconds = time.perf_counter() - begin
        self._program = program
        self._channels = self._fill(program)
        memories = [memory for core in self._channels for memory in core]
        self._sim = sim = Simulation(library, memories, self._bases(), self._memory)
        if self._wave is not None:
            sim.wave(self._wave, self._wave_from)
        self._trace = None
        if self._tracer is not None:
            self._trace = RunTrace(sim, self.config, memories, self._tracer)
        self._identify()
        self._upload(program)

    def _fill(self, program: Program) -> list[list[U8]]:
        """Memory as the program wants it at its start, for each core and channel."""
        out = []
        for core, channels in enumerate(self.config.channels):
            mine = [segment for segment in program.segments if segment.core == core]
            size = -(-max((s.base + s.size for s in mine), default=1) // 4096) * 4096
            memories = [np.zeros(size, np.uint8) for _ in range(channels)]
            for segment in mine:
                if not segment.writable:
                    data = program.data(segment)
                    for memory, part in zip(memories, data):
                        memory[segment.base : segment.base + segment.size] = part
            out.append(memories)
        return out

    def _bases(self) -> list[int]:
        """Where each channel lies on the system bus: apart, and none at 0."""
        room = 1 << max(32, (self.config.channel_bytes - 1).bit_length())
        return [room * (c + 1) for c in range(sum(self.config.channels))]

    def _identify(self) -> None:
        """Check that this is the hardware of the configuration."""
        digest = "".join(f"{self._read('CONFIG_DIGEST', k):08x}" for k in range(8))
        for what, found, wanted in (
            ("ID", self._read("ID"), host.IDENTIFICATION),
            ("VERSION", self._read("VERSION"), host.MAP_VERSION),
            ("SHAPE.cores", self._read("SHAPE") & 0xFF, self.config.cores),
            ("CONFIG_DIGEST", digest, self.config.digest),
        ):
            if found != wanted:
                raise SimulationError(f"{what} reads {found}, expected {wanted}")

    def _upload(self, program: Program) -> None:
        bases = iter(self._bases())
        for core, code in enumerate(program.cores):
            for channel in range(self.config.channels[core]):
                base = next(bases)
                for half, value in (("LOW", base & 0xFFFFFFFF), ("HIGH", base >> 32)):
                    self._write(f"CHANNEL_BASE_{half}", value, channel, core)
            for params, words in ((0, code.words), (1, code.params)):
                self._write("MEMORY_ADDRESS", params << 31, core=core)
                self.sim.write_words(host.address("MEMORY_DATA", core=core), words)
        self._write("WATCHDOG", self._watchdog)
        self._write("INTERRUPT_ENABLE", 7)

    def _read(self, name: str, index: int = 0, core: int = 0) -> int:
        return self.sim.read(host.address(name, index, core))

    def _write(self, name: str, value: int, index: int = 0, core: int = 0) -> None:
        self.sim.write(host.address(name, index, core), value)

    def _explain(self) -> str:
        words = [code.words.tolist() for code in self._program.cores]
        return explain(self._read, self.config.cores, words)

    # ------------------------------------------------------------------------- host access

    def write(self, core: int, channel: int, address: int, data: bytes) -> None:
        """Write `data` to the memory of a channel; VerifyError outside the program's memory."""
        memory = self._place(core, channel, address, len(data))
        memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def read(self, core: int, channel: int, address: int, size: int) -> bytes:
        """Read `size` bytes of the memory of a channel; VerifyError outside the program's."""
        return self._place(core, channel, address, size)[address : address + size].tobytes()

    def memory(self, core: int, channel: int) -> U8:
        """The memory of a channel itself, weights included: for tests that spoil it."""
        return self._channels[core][channel]

    def _place(self, core: int, channel: int, address: int, size: int) -> U8:
        if self._sim is None:
            raise InputError("no program is loaded: call load(program) first")
        memory = self._channels[core][channel]
        if not 0 <= address <= len(memory) - size:
            raise VerifyError(
                f"bytes {address} to {address + size} lie outside the {len(memory)} bytes of core "
                f"{core}, channel {channel}"
            )
        return memory

    # ------------------------------------------------------------------------- runs

    def run(self, entry: str, registers: Mapping[Register, int]) -> RunResult:
        """Run every core from an entry point to its halt.

        Returns
        -------
        RunResult
            Cycles of the run; counters of each unit, summed over cores: "mv.busy", "mv.wait",
            "mv.instructions", "mv.beats".

        Raises
        ------
        SimulationError
            When a core stops with an error or nothing moves; names core, unit and instruction and
            what each unit waits for. Load the program again after it.
        """
        for name in registers:
            if name not in HOST:
                raise InputError(f"register r{int(name)} is not one that a host can set")
        for core, code in enumerate(self._program.cores):
            self._write("ENTRY", code.entries[entry], core=core)
        for name in HOST:
            self._write(name.name, registers.get(name, 0) & 0xFFFFFFFF)
        self._write("INTERRUPT_STATUS", 7)
        if self._trace is not None:
            self._trace.begin()
        self._write("CONTROL", 1)
        self._wait()
        if not self._read("STATUS") & DONE:
            raise SimulationError(self._explain())
        return RunResult(self._cycles(), self._counters())

    def _wait(self) -> None:
        """Run until the interrupt, as long as something moves."""
        quiet, before = 0, None
        while True:
            stop = self.sim.run(CHUNK)
            if self._trace is not None:
                self._trace.take()
            if stop & Stop.INTERRUPT:
                return
            if stop == Stop.LIMIT:
                now = self._activity()
                quiet = quiet + CHUNK if now == before else 0
                before = now
                if quiet > 2 * self._watchdog + CHUNK:
                    raise SimulationError(
                        f"no interrupt, and nothing moved for {quiet} cycles: {self._explain()}"
                    )

    def _activity(self) -> list[int]:
        """Numbers that change as long as something moves."""
        out = list(self._counters().values())
        for channel in range(sum(self.config.channels)):
            counts = self.sim.counts(channel)
            out += [counts.read_beats, counts.write_beats]
        return out

    def _cycles(self) -> int:
        low = self._read("CYCLES_LOW")
        return self._read("CYCLES_HIGH") << 32 | low

    def _counters(self) -> dict[str, int]:
        return {
            f"{unit.name.lower()}.{kind.lower()}": sum(
                self._read(f"COUNT_{kind}", unit, core)
                for core in range(self.config.cores)
            )
            for unit in UNITS
            for kind in COUNTERS
        }

    def close(self) -> None:
        """End the simulation; a waveform is complete then."""
        if self._sim is not None:
            self._sim.close()
            self._sim = None
