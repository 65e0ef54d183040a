"""What can go wrong with a board: each fault injected, told clearly, and survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cards import Card, after, expected, generate, program

from flightllm.runtime import board
from flightllm.runtime.device_lock import DeviceLock
from flightllm.runtime.session import Session
from flightllm.sim.board.functional import CoreError
from flightllm.spec.config import load_config
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.isa import Unit
from flightllm.spec.registers import CORE_REGISTERS, ErrorCode, address

WAITS = {f.name: f.mask for r in CORE_REGISTERS if r.name == "WAITS" for f in r.fields}


@pytest.fixture
def card() -> Card:
    return Card(load_config("tiny"))


@pytest.fixture
def session(card: Card):
    device = card.open()
    yield Session(device, program())
    device.close()


# ------------------------------------------------------------------------- hangs


def test_a_hang_names_the_units_and_what_they_wait_for(card: Card, session: Session) -> None:
    card.bus.stalled = {
        (0, Unit.LD): WAITS["read"],
        (0, Unit.MV): WAITS["fifo"],
        (0, Unit.MISC): 1 << Unit.MV,
    }
    with pytest.raises(DeviceError) as failed:
        session.prefill([1, 2])
    assert str(failed.value).endswith(
        "no progress for 0.3 s: core 0: LD waits for data of a memory read; MV waits for data in"
        " the weight FIFO; MISC waits for a token from MV"
    )
    card.bus.stalled = {}
    assert generate(session) == expected()


def test_the_device_s_own_watchdog_is_reported(card: Card, session: Session) -> None:
    card.bus.failing = {0: CoreError(ErrorCode.WATCHDOG, Unit.ST, 77)}
    card.bus._waits = {}
    card.bus._advance = lambda whole=card.bus._advance: (
        card.bus._waits.update({(0, Unit.ST): WAITS["write"]}), whole()
    )  # fmt: skip
    with pytest.raises(DeviceError, match="nothing moved .*core 0: ST waits for"):
        session.prefill([1, 2])
    del card.bus._advance
    card.bus.failing = {}
    assert generate(session) == expected()


def test_a_slow_run_is_not_a_hang(card: Card, session: Session, monkeypatch) -> None:
    """Longer than the timeout in all, but its units get on."""
    monkeypatch.setattr("flightllm.sim.board.functional.STEPS_A_LOOK", 2)
    advance = card.bus._advance
    card.bus._advance = lambda: (time.sleep(0.01), advance())
    begin = time.monotonic()
    session.prefill([1])
    assert time.monotonic() - begin > 1


def test_a_device_that_ignores_reset_must_be_programmed_again(card: Card, monkeypatch) -> None:
    monkeypatch.setattr(board, "RESET_SECONDS", 0.1)
    device = card.open()
    session = Session(device, program())
    read = card.bus.read
    card.bus.read = lambda offset: 1 if offset == address("STATUS") else read(offset)
    with pytest.raises(DeviceError, match="a reset does not end, .* program the bitstream again"):
        session.prefill([1])
    with pytest.raises(InputError, match="no program is loaded"):
        session.prefill([1])
    device.close()
    again = card.open()
    assert generate(Session(again, program())) == expected()
    again.close()


# ------------------------------------------------------------------------- error responses


@pytest.mark.parametrize(
    "code, unit, words",
    [
        (ErrorCode.READ, Unit.LD, "LD at word 12.*: a memory channel answered a read with an"),
        (ErrorCode.WRITE, Unit.ST, "ST at word 12.*: a memory channel answered a write with an"),
    ],
)
def test_an_error_response_names_unit_word_and_channel(
    card: Card, session: Session, code: ErrorCode, unit: Unit, words: str
) -> None:
    card.bus.failing = {0: CoreError(code, unit, 12, 1)}
    with pytest.raises(DeviceError, match=f"core 0, {words}.* .channel 1."):
        session.prefill([1, 2])
    card.bus.failing = {}
    assert generate(session) == expected()


def test_errors_of_the_second_core_and_the_dispatcher() -> None:
    card = Card(load_config("tiny-2core"))
    device = card.open()
    session = Session(device, program("tiny-2core"))
    card.bus.failing = {1: CoreError(ErrorCode.LOOP, address=5)}
    with pytest.raises(DeviceError, match="core 1, the dispatcher at word 5.*: loops nest too"):
        session.prefill([1])
    card.bus.failing = {}
    assert generate(session) == expected("tiny-2core")
    device.close()


# ------------------------------------------------------------------------- uploads


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_upload_leaves_no_program(card: Card) -> None:
    device = card.open()
    device.load(program())
    store = card.bus.store
    card.bus.store = after(3, lambda: signal.raise_signal(signal.SIGINT), store)
    with pytest.raises(KeyboardInterrupt):
        device.load(program())
    with pytest.raises(InputError, match="no program is loaded"):
        device.run("decode", {})
    card.bus.store = store
    assert generate(Session(device, program())) == expected()
    device.close()


def test_a_bit_that_flips_on_the_way_is_found(card: Card) -> None:
    device = card.open()
    store = card.bus.store

    def spoil(address: int, data: bytes) -> None:
        store(address, bytes([data[0] ^ 4]) + data[1:] if any(data) else data)

    card.bus.store = spoil
    with pytest.raises(DeviceError, match="segment '.*' of core 0 reads back with another digest"):
        device.load(program())
    card.bus.store = store
    assert generate(Session(device, program())) == expected()
    device.close()


def test_an_instruction_that_flips_on_the_way_is_found(card: Card) -> None:
    device = card.open()
    write = card.bus.write
    data, seen = address("MEMORY_DATA"), []

    def spoil(offset: int, value: int) -> None:
        seen.append(offset)
        write(offset, value ^ 1 if offset == data and seen.count(data) == 3 else value)

    card.bus.write = spoil
    with pytest.raises(DeviceError, match="instructions of core 0: word 2 reads back as"):
        device.load(program())
    card.bus.write = write
    device.load(program())
    device.close()


def test_a_transfer_that_fails_says_where(card: Card) -> None:
    device = card.open()

    def broken(address: int, data: bytes) -> None:
        raise OSError("the link is down")

    card.bus.store = broken
    with pytest.raises(DeviceError, match="writing channel 0 of core 0 failed: the link is down"):
        device.load(program())
    device.close()


# ------------------------------------------------------------------------- Ctrl-C


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_mid_token_loses_nothing(card: Card, session: Session) -> None:
    """The interrupted step is tried again; tokens and memory are those of an undisturbed run."""
    from cards import PROMPT

    tokens, digest = expected()
    session.prefill(PROMPT)
    seen = [int(session.top()[1][0])]
    interrupted = 0
    for number in range(len(tokens) - 1):
        read = card.bus.read
        card.bus.read = after(
            9 + number, lambda: signal.raise_signal(signal.SIGINT), read
        )  # somewhere between the start and the end of the run
        try:
            session.decode(seen[-1])
        except KeyboardInterrupt:
            interrupted += 1
            card.bus.read = read
            session.decode(seen[-1])
        card.bus.read = read
        seen.append(int(session.top()[1][0]))
    assert interrupted == len(tokens) - 1
    assert (seen, session.memory_sha256()) == (tokens, digest)


# ------------------------------------------------------------------------- two processes


HOLD = """
import sys, time
from pathlib import Path
from flightllm.runtime.device_lock import DeviceLock
lock = DeviceLock(sys.argv[1], Path(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_share_a_device(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, "card/0", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(DeviceError, match=f"card/0 is in use by process {holder.pid}"):
            DeviceLock("card/0", tmp_path)
        DeviceLock("card/1", tmp_path).release()
        holder.kill()  # the kernel lets go of what a dead process held
        holder.wait()
    lock = DeviceLock("card/0", tmp_path)
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_second_opening_is_refused_until_the_first_is_closed(card: Card) -> None:
    first = card.open()
    with pytest.raises(DeviceError, match=f"card.* is in use by process {os.getpid()}"):
        card.open()
    first.close()
    card.open().close()


def test_a_failed_opening_lets_go_of_the_device(card: Card, monkeypatch) -> None:
    monkeypatch.setattr(board, "MAP_VERSION", 99)
    with pytest.raises(DeviceError, match="VERSION reads 1, expected 99"):
        card.open()
    monkeypatch.undo()
    card.open().close()


# ------------------------------------------------------------------------- resets behind our back


def test_a_reset_between_upload_and_run_is_noticed(card: Card, session: Session) -> None:
    card.bus.power_cycle()
    with pytest.raises(DeviceError, match="was reset or programmed anew after the upload; load"):
        session.prefill([1, 2])
    assert generate(Session(session.device, program())) == expected()


def test_an_upload_by_someone_else_is_noticed(card: Card, session: Session) -> None:
    mark = card.bus.read(address("WATCHDOG"))
    card.bus.write(address("WATCHDOG"), mark ^ 1)
    with pytest.raises(DeviceError, match="load the program again"):
        session.decode(1)
