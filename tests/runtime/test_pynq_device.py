"""The runtime that ships to boards, with the real pynq package, over simulated cards."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pynq
import pytest
from cards import Card, expected, generate, program

from flightllm.board_devices import open_board
from flightllm.runtime.pynq_device import PynqDevice, find_device
from flightllm.runtime.pynq_driver import AcceleratorDriver
from flightllm.runtime.session import Session
from flightllm.spec.config import load_config
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.handoff import VLNV, handoff_path
from flightllm.spec.isa import UNITS, Register
from flightllm.spec.registers import address

BOARDS = ("tiny", "tiny-2core")


@pytest.fixture
def card() -> Card:
    return Card(load_config("tiny"))


@pytest.mark.parametrize("board", BOARDS)
def test_tokens_and_memory_are_those_of_the_direct_executor(board: str) -> None:
    device = Card(load_config(board)).open()
    session = Session(device, program(board))
    assert generate(session) == expected(board)
    assert generate(session) == expected(board)  # a second sequence on the same upload
    device.close()


def test_several_steps_in_one_run_and_loading_again(card: Card) -> None:
    device = card.open()
    first = Session(device, program())
    first.prefill([3, 1, 4])
    result = first.decode(1, steps=4)
    assert result.cycles is None  # the functional model knows no time
    assert result.counters["mv.instructions"] > 0
    assert generate(Session(device, program())) == expected()
    device.close()


def test_the_driver_is_bound_by_vlnv(card: Card) -> None:
    device = card.open()
    overlay = pynq.Overlay(str(card.bitstream), device=card.device, download=False)
    assert overlay.ip_dict["flightllm_1"]["type"] == VLNV
    assert isinstance(overlay.flightllm_1, AcceleratorDriver)
    assert set(overlay.mem_dict) == {"bank0", "bank1"}
    device.close()


def test_what_is_not_flushed_does_not_arrive(card: Card) -> None:
    device = card.open()
    memory = card.device.get_memory({"base_address": 0, "size": 1 << 20, "tag": "bank0"})
    buffer = pynq.allocate((64,), np.uint8, target=memory)
    buffer[:] = 7
    assert card.bus.fetch(buffer.device_address, 64) == bytes(64)
    buffer[8:16].flush()
    assert card.bus.fetch(buffer.device_address, 64) == bytes(8) + bytes([7] * 8) + bytes(48)
    device.close()


def test_an_interrupt_is_waited_for(card: Card) -> None:
    class Interrupt:
        waits = 0

        async def wait(self) -> None:
            Interrupt.waits += 1
            await asyncio.sleep(0 if Interrupt.waits % 2 else 60)  # every second one never comes

    asyncio.set_event_loop(asyncio.new_event_loop())
    device = card.open()
    device._link._driver.interrupt = Interrupt()
    assert generate(Session(device, program()), 2) == expected(tokens=2)
    assert Interrupt.waits > 2
    device.close()


def test_trace_has_a_record_for_each_unit_and_run(card: Card) -> None:
    records = []
    device = card.open(trace=records.append)
    session = Session(device, program())
    session.prefill([3])
    session.decode(1)
    assert [record.name for record in records] == ["prefill"] * len(UNITS) + ["decode"] * len(UNITS)
    assert {record.unit for record in records} == {unit.name.lower() for unit in UNITS}
    assert records[0].operands["instructions"] > 0
    device.close()


def test_power_is_known_where_the_device_says_it(card: Card) -> None:
    device = card.open()
    card.device.power = lambda: 12.5
    assert device.power() == 12.5
    device.close()


def test_only_host_registers_and_entries_that_exist(card: Card) -> None:
    device = card.open()
    with pytest.raises(InputError, match="no program is loaded"):
        device.run("decode", {})
    device.load(program())
    with pytest.raises(InputError, match="no entry 'training'"):
        device.run("training", {})
    with pytest.raises(ValueError, match="ZERO is not a register that a host sets"):
        device.run("decode", {Register.ZERO: 1})
    device.close()


# ------------------------------------------------------------------------- the wrong bitstream


def test_a_program_for_other_hardware_is_refused_by_field(card: Card) -> None:
    with pytest.raises(InputError, match="name: the program was made for tiny-2core"):
        card.open(config=load_config("tiny-2core"))
    device = card.open()
    with pytest.raises(InputError, match="differ in name: the program was made for tiny-2core"):
        device.load(program("tiny-2core"))
    device.load(program())
    device.close()


def test_a_bitstream_that_is_not_its_hand_overs_is_refused(card: Card) -> None:
    card.bitstream.write_bytes(card.bitstream.read_bytes() + b"\0")
    with pytest.raises(InputError, match="sha256: the file tiny.xclbin is not the one"):
        card.open()


def test_a_device_with_another_digest_is_refused(card: Card) -> None:
    """Someone programs another bitstream under our hand-over: the registers tell."""
    other = Card(load_config("tiny-2core"))
    device = card.open()
    overlay = pynq.Overlay(str(other.bitstream), device=card.device)
    device._link._driver = overlay.flightllm_1
    with pytest.raises(DeviceError, match="SHAPE.cores reads 2, expected 1"):
        device.load(program())
    card.bus.config = load_config("formal")
    with pytest.raises(DeviceError, match=r"CONFIG_DIGEST reads \w{16}\.\.\., but tiny has"):
        device._check_identity()


def test_something_else_behind_the_registers_is_refused(card: Card) -> None:
    device = card.open()
    read = card.bus.read
    card.bus.read = lambda offset: 0xDEAD if offset == address("ID") else read(offset)
    with pytest.raises(DeviceError, match="ID reads 0x0000dead, not 0x464c4c4d"):
        device.load(program())
    device.close()


def test_a_hand_over_of_another_register_map_is_refused(card: Card) -> None:
    path = handoff_path(card.bitstream)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "registers": 99}))
    with pytest.raises(InputError, match="registers: map 99, this runtime drives map"):
        card.open()


def test_an_overlay_without_the_accelerator_is_refused(card: Card, monkeypatch) -> None:
    monkeypatch.setattr("flightllm.runtime.pynq_driver.VLNV", "flightllm:accelerator:other:1.0")
    with pytest.raises(DeviceError, match="the bitstream holds no accelerator"):
        card.open()
    monkeypatch.setattr("flightllm.runtime.pynq_driver.VLNV", VLNV.replace(":1.0", ":7.0"))
    with pytest.raises(DeviceError, match="is of type .*:1.0, expected .*:7.0"):
        card.open()
    monkeypatch.undo()
    card.open().close()


# ------------------------------------------------------------------------- devices by name


def test_devices_by_name() -> None:
    with pytest.raises(DeviceError, match="device u280: PYNQ finds none on this machine"):
        find_device("u280")
    with pytest.raises(InputError, match="'sim:spice' is not one of sim:functional, sim:rtl"):
        open_board(load_config("tiny"), "sim:spice")
    with pytest.raises(InputError, match="a board needs its bitstream: --bitstream FILE"):
        open_board(load_config("tiny"), "embedded_xrt0")


def test_the_simulated_device_by_name() -> None:
    device = open_board(load_config("tiny"), "sim:functional")
    assert isinstance(device, PynqDevice)
    assert generate(Session(device, program()), 2) == expected(tokens=2)
    device.close()
