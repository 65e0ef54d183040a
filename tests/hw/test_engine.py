"""MM and MV in RTL against the functional simulator, on random matrices and shapes, bit for bit."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from flightllm.hw.engine import EngineSize, MatrixEngine
from flightllm.hw.engine.job import ROWS_BITS
from flightllm.hw.engine.shares import reciprocal

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import (  # noqa: E402
    Machine,
    cyclic,
    engine,
    plain,
    random_machine,
    turns,
    whole,
)

TINY = EngineSize(channels=2, k_lanes=32, cells=2, lanes=8, vectors=128, accumulators=32 * 64)
"""As the preset `tiny` has it."""
STALLS = ((0, 0), (30, 0), (0, 30), (60, 50))
"""Per cent of cycles in which no beat is offered, in which a port of A, F or parameters waits."""


@pytest.fixture(scope="module")
def tiny() -> Path:
    return engine(TINY)


def compare(program: Path, size: EngineSize, seeds: range) -> None:
    for seed in seeds:
        idle, stall = STALLS[seed % len(STALLS)]
        random_machine(seed, size).check(program, idle, stall, seed)


@pytest.mark.parametrize("seed", range(0, 24, 4))
def test_random_instructions(tiny: Path, seed: int) -> None:
    compare(tiny, TINY, range(seed, seed + 4))


def test_no_more_rows_than_channels(tiny: Path) -> None:
    """Channels without rows, blocks of one pair, odd rows, one after the other."""
    machine = Machine(2, 1)
    for rows in (1, 2, 3, 15, 17, 32, 33):
        machine.add(plain(rows, rows, 64, 4, 32, 2, add=True))
        machine.add(cyclic(rows, rows, 32, 8, 2, first=rows, start=1, n2=3))
        machine.add(whole(rows, rows, 2, 4, 2, n1=2))
    machine.check(tiny)


def test_units_take_turns(tiny: Path) -> None:
    """The FIFOs' matrices go to the instructions in program order, whichever unit's they are."""
    for idle, stall in STALLS:
        turns(2).check(tiny, idle, stall)


def test_largest_tile(tiny: Path) -> None:
    machine = Machine(2, 2)
    machine.add(plain(1, 37, 96, 5, 32, 2, n1=16, n2=8))
    machine.add(whole(2, 64, 1, 8, 2, n1=16, n2=8))
    machine.check(tiny, 20, 20)


@pytest.mark.parametrize("rows, vectors", [(256, 128), (2, 129), (2, 0)])
def test_what_the_engine_does_not_have_is_a_fault(tiny: Path, rows: int, vectors: int) -> None:
    """More accumulators or vectors than there are, or no vectors."""
    machine = Machine(2, 3)
    machine.add(whole(1, rows, 1, 4, 2, n1=vectors))
    with pytest.raises(AssertionError, match="fault"):
        machine.check(tiny)


@pytest.mark.slow
@pytest.mark.parametrize("idle, stall", itertools.product((0, 40, 80), repeat=2))
def test_every_mix_of_pauses(tiny: Path, idle: int, stall: int) -> None:
    for seed in range(6):
        random_machine(seed, TINY).check(tiny, idle, stall, seed)


@pytest.mark.slow
def test_many_random_instructions(tiny: Path) -> None:
    compare(tiny, TINY, range(100, 400))


@pytest.mark.parametrize("divisor", range(3, 33))
def test_shares_are_divided_exactly(divisor: int) -> None:
    factor, shift = reciprocal(divisor)
    rows = np.arange(1 << ROWS_BITS)
    assert np.array_equal(rows * factor >> shift, rows // divisor)


OTHERS = {
    "u280": (EngineSize(1, 64, 3, 16, 128, 64 * 43, twin=True), 64, {}),
    "twin": (EngineSize(2, 16, 2, 4, 24, 24 * 24, twin=True), 16, {}),
    "eight": (EngineSize(8, 16, 1, 8, 24, 24 * 24), 16, {}),
    "twin3": (EngineSize(3, 32, 3, 8, 24, 24 * 24, twin=True), 32, {}),
    "dsp48e1": (
        EngineSize(3, 16, 1, 4, 24, 24 * 24), 16,
        {"dsp_kind": "dsp48e1", "full_pairs": False, "modelled": True},
    ),
    "dsp48e2": (
        EngineSize(2, 16, 2, 2, 24, 24 * 24), 16, {"dsp_kind": "dsp48e2", "modelled": True},
    ),
    "dsp58": (EngineSize(1, 32, 1, 32, 24, 64 * 24), 32, {"dsp_kind": "dsp58", "modelled": True}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_engines(name: str) -> None:
    size, beat, kind = OTHERS[name]
    program = engine(size, beat, MatrixEngine(size, beat, **kind))
    compare(program, size, range(40))
