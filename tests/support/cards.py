"""Programs and simulated cards for tests of the board runtime."""

from __future__ import annotations

import itertools
import os
import tempfile
from functools import cache
from pathlib import Path

from random_quantized import random_model

from flightllm.compiler.build import build_program
from flightllm.runtime.generate import Generator
from flightllm.runtime.pynq_device import PynqDevice
from flightllm.runtime.session import Session
from flightllm.sim.board.device import SimulatedDevice, write_bitstream
from flightllm.sim.board.functional import FunctionalBus
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import HwConfig, load_config
from flightllm.spec.image import Program

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]
_NUMBERS = itertools.count()


@cache
def program(board: str = "tiny") -> Program:
    """A small random model compiled for a board."""
    return build_program(random_model(3), load_config(board), "random")


@cache
def expected(board: str = "tiny", tokens: int = 6) -> tuple[list[int], str]:
    """Tokens and memory digest of the functional simulator itself."""
    return generate(Session(FunctionalDevice(load_config(board)), program(board)), tokens)


def generate(session: Session, tokens: int = 6) -> tuple[list[int], str]:
    """Generate behind `PROMPT`; tokens and memory digest."""
    return list(Generator(session, PROMPT, tokens)), session.memory_sha256()


def after(count: int, action, method):
    """`method`, but its call number `count` runs `action` first."""
    calls = 0

    def wrapped(*arguments):
        nonlocal calls
        calls += 1
        if calls == count:
            action()
        return method(*arguments)

    return wrapped


class Card:
    """A simulated card, its bitstream, and what opens it."""

    def __init__(self, config: HwConfig, make_bus=FunctionalBus) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.device = SimulatedDevice(make_bus, f"card{os.getpid()}.{next(_NUMBERS)}")
        self.bitstream = write_bitstream(Path(self._folder.name), config)

    @property
    def bus(self):
        """What stands behind its registers."""
        return self.device.bus

    def open(self, **options) -> PynqDevice:
        """The device, short of patience."""
        return PynqDevice(self.bitstream, self.device, **{"timeout": 0.3, **options})
