"""Alveo cards over pyxrt: our `pynq.Device` against a stand-in with pyxrt's published interface."""

from __future__ import annotations

import sys

import fake_pyxrt
import numpy as np
import pynq
import pytest
from cards import Card, expected, generate, program
from pynq.pl_server.xclbin_parser import parse_xclbin_header

from flightllm.runtime import pynq_xrt
from flightllm.runtime.pynq_device import PynqDevice
from flightllm.runtime.pynq_xrt import AlveoDevice, CoreLibrary
from flightllm.runtime.session import Session
from flightllm.sim.board.device import BANK_OFFSET, bank_base
from flightllm.sim.board.functional import FunctionalBus
from flightllm.sim.board.xclbin import configuration
from flightllm.spec.config import load_config
from flightllm.spec.errors import DeviceError

TINY = load_config("tiny")


@pytest.fixture
def bitstream():
    card = Card(TINY)
    yield card.bitstream


@pytest.fixture
def xrt(request, monkeypatch):
    """The stand-in, imported as pyxrt."""
    module = fake_pyxrt.make(
        lambda data: FunctionalBus(configuration(data)),
        getattr(request, "param", "ip"),
        lambda bank: bank_base(TINY, bank) + BANK_OFFSET,
        '{"power_consumption_watts": "23.5"}',
    )
    monkeypatch.setitem(sys.modules, "pyxrt", module)
    return module


@pytest.mark.parametrize("xrt", ["ip", "kernel"], indirect=True)
def test_tokens_and_memory_through_pyxrt(xrt, bitstream) -> None:
    device = PynqDevice(bitstream, AlveoDevice(0), timeout=5)
    assert generate(Session(device, program())) == expected()
    assert xrt.state["opened"][0][:2] == ("uuid", "flightllm:{flightllm_1}")
    assert xrt.state["loaded"] == str(bitstream)
    assert device.power() == 23.5
    device.close()


@pytest.mark.parametrize("xrt", ["library"], indirect=True)
def test_registers_through_the_c_library(xrt, bitstream, monkeypatch) -> None:
    uuid = bytes.fromhex(parse_xclbin_header(bitstream.read_bytes())[1])
    core = fake_pyxrt.FakeCore(lambda: xrt.state["bus"], uuid)
    monkeypatch.setattr(pynq_xrt.ctypes, "CDLL", lambda name: core)
    device = PynqDevice(bitstream, AlveoDevice(0), timeout=5)
    assert generate(Session(device, program()), 2) == expected(tokens=2)
    assert core.contexts == [(0, False)]  # exclusive
    device.close()
    with pytest.raises(DeviceError, match="xclOpenContext answers -22"):
        CoreLibrary(0, bytes(16), 0, core)


def test_neighbours_of_an_unaligned_write_are_kept(xrt, bitstream) -> None:
    device = AlveoDevice(0)
    overlay = pynq.Overlay(str(bitstream), device=device)
    memory = device.get_memory(overlay.mem_dict["bank1"])
    buffer = pynq.allocate((256,), np.uint8, target=memory)
    bus, base = xrt.state["bus"], buffer.device_address
    assert base == bank_base(TINY, 1) + BANK_OFFSET
    bus.store(base, bytes(range(256)))  # the accelerator wrote it
    buffer[70:75] = 0
    buffer[70:75].flush()
    assert bus.fetch(base, 256) == bytes(range(70)) + bytes(5) + bytes(range(75, 256))
    buffer[3:9].invalidate()
    assert buffer[3:9].tolist() == list(range(3, 9))


def test_cards_are_found_where_xrt_is(xrt, monkeypatch) -> None:
    (card,) = AlveoDevice._probe_()
    assert (card.tag, card.name) == ("alveo0", "xilinx_u280_gen3x16_xdma_base_1")
    monkeypatch.setattr(pynq.ps, "ON_TARGET", True)
    assert AlveoDevice._probe_() == []
    monkeypatch.undo()
    assert AlveoDevice._probe_() == []  # without pyxrt


def test_a_driver_that_is_not_loaded_means_no_card(xrt) -> None:
    def refuse() -> int:
        raise RuntimeError("No such device with index '0'")

    xrt.enumerate_devices = refuse
    assert AlveoDevice._probe_() == []


def test_a_card_without_a_sensor(xrt) -> None:
    card = AlveoDevice(0)
    card.handle.get_info = lambda key: '{"power_consumption_watts": "N/A"}'
    assert card.power() is None
    with pytest.raises(DeviceError, match="alveo0: no kernel is open at address 0x10"):
        card.read_registers(16, 4)
