"""The ULX3S in simulation, from the serial line to the SDRAM's pins, behind the same generate()."""

from __future__ import annotations

import os
import pty
import subprocess
import tty
from pathlib import Path

import pytest
from cards import PROMPT
from random_quantized import random_model
from small_board import small_board

from flightllm.compiler.build import build_program
from flightllm.hw.boards.ulx3s.shell import SHELL, shell_rtlil
from flightllm.hw.memory.ram import VERILOG
from flightllm.runtime.board import BoardDevice
from flightllm.runtime.generate import Generator
from flightllm.runtime.serial_link import SerialLink, SerialPort
from flightllm.runtime.session import Session
from flightllm.sim.functional import FunctionalDevice
from flightllm.sim.rtl.library import cache_folder
from flightllm.sim.rtl.verilate import verilate
from flightllm.spec.serial import BAUD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BOARD = small_board()
HARNESS = Path(__file__).parent.parent / "hw" / "ulx3s_harness.cpp"
DIVISOR = 4
"""Cycles of a bit: the least that the receiver takes, so that a run is short."""
SILENCE = 60.0
"""Seconds: the simulation takes some for each of the longest requests, where a board takes 0.04."""


@pytest.fixture(scope="module")
def simulated() -> Path:
    return verilate(
        shell_rtlil(BOARD, DIVISOR), SHELL, HARNESS, cache_folder(), [f"DIVISOR={DIVISOR}"],
        more=VERILOG,
    )  # fmt: skip


def test_tokens_and_memory_over_the_line(simulated: Path) -> None:
    """A pseudo-terminal joins the runtime's serial port and the design's receiver."""
    program = build_program(random_model(3), BOARD, "random")
    expected = Session(FunctionalDevice(BOARD), program)
    tokens = list(Generator(expected, PROMPT, 3))
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with subprocess.Popen([simulated, str(ours)], pass_fds=[ours]) as board:
        try:
            port = SerialPort(Path(os.ttyname(theirs)), BAUD, SILENCE)
            device = BoardDevice(SerialLink(port, "simulated", BOARD), BOARD, timeout=600)
            session = Session(device, program)
            assert list(Generator(session, PROMPT, 3)) == tokens
            assert session.memory_sha256() == expected.memory_sha256()
            device.close()
        finally:
            board.kill()
            os.close(ours)
            os.close(theirs)
