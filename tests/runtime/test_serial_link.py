"""Boards over a serial line: the same generate(), lines that spoil bytes, a real terminal."""

from __future__ import annotations

import os
import pty
import threading
import tty

import pytest
from cards import PROMPT
from random_quantized import random_model
from small_board import small_board

from flightllm.board_devices import open_board
from flightllm.compiler.build import build_program
from flightllm.runtime.board import BoardDevice
from flightllm.runtime.generate import Generator
from flightllm.runtime.serial_link import SerialLink, SerialPort
from flightllm.runtime.session import Session
from flightllm.sim.board.functional import FunctionalBus
from flightllm.sim.board.serial import SimulatedLine
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config
from flightllm.spec.errors import DeviceError, InputError
from flightllm.spec.serial import Command, check_byte, request

BOARD = small_board()


@pytest.fixture(scope="module")
def program():
    return build_program(random_model(3), BOARD, "random")


def generate(session: Session) -> tuple[list[int], str]:
    return list(Generator(session, PROMPT, 4)), session.memory_sha256()


def test_tokens_and_memory_over_the_line(program, tmp_path) -> None:
    link = SerialLink(SimulatedLine(FunctionalBus(BOARD)), "line0", BOARD)
    device = BoardDevice(link, BOARD, timeout=5)
    expected = generate(Session(FunctionalDevice(BOARD), program))
    assert generate(Session(device, program)) == expected
    assert device.name == "board:line0"
    device.close()


def test_writes_of_any_place_and_length_keep_their_neighbours() -> None:
    bus = FunctionalBus(BOARD)
    link = SerialLink(SimulatedLine(bus), "line1", BOARD)
    bus.store(0, bytes(range(64)) * 100)
    link.put(0, 0, 5, b"\xaa" * 3)
    link.put(0, 0, 30, b"\xbb" * 5000)
    link.put(0, 0, 6000, b"")
    want = bytearray(bytes(range(64)) * 100)
    want[5:8], want[30:5030] = b"\xaa" * 3, b"\xbb" * 5000
    assert bus.fetch(0, 6400) == want
    assert link.get(0, 0, 3, 5100) == want[3:5103]
    link.close()


class _Noisy(SimulatedLine):
    """Spoils or loses the bytes that `plan` names, by the number of the reply."""

    def __init__(self, bus, plan) -> None:
        super().__init__(bus)
        self.plan, self.count = plan, 0

    def read(self, size: int) -> bytes:
        out = bytearray(super().read(size))
        what = self.plan.get(self.count)
        self.count += 1
        if what == "spoil":
            out[0] ^= 4
        elif what == "lose":
            del out[-1]
        return bytes(out)


def test_a_spoilt_or_short_reply_is_asked_again() -> None:
    line = _Noisy(FunctionalBus(BOARD), {0: "spoil", 2: "lose", 3: "spoil"})
    link = SerialLink(line, "line2", BOARD)
    assert link.read(0) == 0x464C4C4D
    assert link.get(0, 0, 0, 32) == bytes(32)
    line.plan = dict.fromkeys(range(100), "lose")
    with pytest.raises(DeviceError, match="line2: no sound reply to a request .register_read."):
        link.read(0)
    link.close()


def test_by_name() -> None:
    with pytest.raises(DeviceError, match="/dev/none: No such file"):
        open_board(BOARD, "serial:/dev/none")


def test_half_a_request_is_forgotten() -> None:
    line = SimulatedLine(FunctionalBus(BOARD))
    line.write(request(Command.MEMORY_WRITE, 0, 3) + b"abc")
    assert line.read(1) == b""
    line.clear()
    line.write(b"\x00noise" + (head := request(Command.REGISTER_READ, 0)))
    reply = line.read(5)
    assert reply[-1] == check_byte((head, reply[:-1]))


def test_only_one_channel_and_one_holder() -> None:
    with pytest.raises(InputError, match="a serial line reaches one channel"):
        SerialLink(SimulatedLine(FunctionalBus(BOARD)), "line3", load_config("tiny"))
    link = SerialLink(SimulatedLine(FunctionalBus(BOARD)), "line3", BOARD)
    with pytest.raises(DeviceError, match="line3 is in use by process"):
        SerialLink(SimulatedLine(FunctionalBus(BOARD)), "line3", BOARD)
    with pytest.raises(DeviceError, match="2097152 bytes do not fit memory of 1048576"):
        link.reserve([[1 << 21]])
    link.close()


def test_a_real_terminal(program) -> None:
    """The port class over a pseudo-terminal, whose other end a thread serves."""
    ours, theirs = pty.openpty()
    tty.setraw(ours)
    line = SimulatedLine(FunctionalBus(BOARD))

    def serve() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # closed
                return
            line.write(data)
            os.write(ours, line.read(1 << 20))

    threading.Thread(target=serve, daemon=True).start()
    link = SerialLink(SerialPort(os.ttyname(theirs), 115200, silence=5), "line4", BOARD)
    assert link.read(0) == 0x464C4C4D
    link.put(0, 0, 64, bytes(range(200)))
    assert link.get(0, 0, 64, 200) == bytes(range(200))
    link.close()
    os.close(theirs)
    with pytest.raises(InputError, match="baud: 12345 is not a rate"):
        SerialPort(os.devnull, 12345)
    with pytest.raises(DeviceError, match="gone: No such file"):
        SerialPort("gone", 115200)
