"""A board on the network: PYNQ's own remote device and .hwh parser, against a served simulation."""

from __future__ import annotations

import pynq
import pytest
from cards import expected, generate, program
from hwh import bit_file, zynq_hwh
from remote_board import REGISTERS, RemoteBoard

from flightllm.runtime.pynq_device import PynqDevice, find_device
from flightllm.runtime.pynq_driver import AcceleratorDriver
from flightllm.runtime.session import Session
from flightllm.sim.board.functional import FunctionalBus
from flightllm.spec.config import load_config
from flightllm.spec.errors import DeviceError
from flightllm.spec.handoff import save_handoff


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The served board and PYNQ's device for it, whose caches stay out of the pynq package."""
    from pynq.pl_server import global_state
    from pynq.pl_server.remote_device import RemoteDevice

    monkeypatch.setattr(global_state, "STATE_DIR", str(tmp_path))
    monkeypatch.setattr(RemoteDevice, "gen_cache", lambda *_: None)
    board = RemoteBoard(FunctionalBus(load_config("tiny")))
    yield board, RemoteDevice(0, "127.0.0.1", board.port, tag=f"remote{board.port}")
    board.stop()
    if hasattr(pynq.ps.Clocks, "_real_instance"):  # PYNQ keeps the first board's clocks
        del pynq.ps.Clocks._real_instance


@pytest.fixture
def bitstream(tmp_path):
    path = tmp_path / "tiny.bit"
    path.write_bytes(bit_file(b"1234" * 8))
    (tmp_path / "tiny.hwh").write_text(zynq_hwh(REGISTERS))
    save_handoff(path, load_config("tiny"), ("", ""), "a test")
    return path


def test_tokens_and_memory_over_the_network(remote, bitstream) -> None:
    board, device = remote
    opened = PynqDevice(bitstream, device, timeout=5)
    assert opened.power() is None
    session = Session(opened, program())
    sent = board.buffers.moved
    assert generate(session, 3) == expected(tokens=3)
    # Tokens and results are small: no buffer moved as a whole until the digest was asked for.
    assert board.buffers.moved > sent
    moved = board.buffers.moved
    session.restart()
    session.prefill([1])
    session.top()
    assert board.buffers.moved == moved
    opened.close()


def test_the_board_is_programmed_through_its_fpga_manager(remote, bitstream) -> None:
    board, device = remote
    PynqDevice(bitstream, device).close()
    assert board.system.files["/lib/firmware/tiny.bin"] == b"4321" * 8  # words, byte-swapped
    assert board.system.files["/sys/class/fpga_manager/fpga0/firmware"] == b"tiny.bin"


def test_the_driver_is_bound_through_a_hwh(remote, bitstream) -> None:
    _, device = remote
    overlay = pynq.Overlay(str(bitstream), device=device, download=False)
    assert isinstance(overlay.flightllm_1, AcceleratorDriver)
    assert overlay.ip_dict["flightllm_1"]["phys_addr"] == REGISTERS


def test_a_large_write_after_a_run_keeps_what_the_device_wrote(
    remote, bitstream, monkeypatch
) -> None:
    monkeypatch.setattr("flightllm.runtime.pynq_link.SMALL", 256)
    _, device = remote
    opened = PynqDevice(bitstream, device)
    session = Session(opened, program())
    session.prefill([5, 6, 7])
    segment = next(s for s in program().segments if s.writable and s.size > 512)
    before = session.memory_sha256()
    held = opened.read(0, 0, segment.base, segment.size)
    opened.write(0, 0, segment.base, held)
    assert session.memory_sha256() == before
    opened.write(0, 0, segment.base, bytes([held[0] ^ 1]) + held[1:4])
    assert session.memory_sha256() != before
    opened.close()


def test_no_board_at_the_address(monkeypatch) -> None:
    monkeypatch.setattr("pynq.pl_server.remote_device.grpc.channel_ready_future", _never)
    with pytest.raises(DeviceError, match="device remote:192.0.2.1: Failed to connect"):
        find_device("remote:192.0.2.1")


class _never:
    def __init__(self, channel) -> None:
        pass

    def result(self, timeout: float) -> None:
        import grpc

        raise grpc.FutureTimeoutError
