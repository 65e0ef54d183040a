"""Planted errors in the matrix engine, each of which the comparison must catch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from source_mutation import Mutation, mutated

from flightllm.hw import engine as package
from flightllm.hw.engine import EngineSize

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import Machine, engine, random_case, random_machine, turns  # noqa: E402

SIZE = EngineSize(2, 16, 2, 4, 24, 24 * 24, twin=True)
MUTATIONS = [
    Mutation("lane.py", "Mux(same, written, store.read_data)", "store.read_data",
             "an accumulator is read while it is written"),
    Mutation("sequencer.py", "step.end & ~step.begin & (seen > entries)", "0",
             "an accumulator is visited before its last sum is back"),
    Mutation("sequencer.py", "step.finish & (used == 2)", "0",
             "results are overwritten before they have left"),
    Mutation("sequencer.py", "self.pair | step.couple", "self.pair",
             "the second pair of a slice is forgotten"),
    Mutation("epilogue.py", "NEGATIVE_ZERO = 1 << 31", "NEGATIVE_ZERO = 0",
             "the sign of a zero is lost"),
    Mutation("rows.py", "self.base + (count < job.extra)", "self.base",
             "all shares are alike"),
    Mutation("sums.py", "Mux(last.place == 0, 0, before)", "before",
             "sums of activations go on in the next group"),
    Mutation("windows.py", "Cat(self.half, self.half | self.join)",
             "Cat(self.half, self.half)", "both cells get the same half"),
    Mutation("channel.py", "other = Mux(control.couple, words[1], own)", "other = own",
             "both pairs get the first pair's rows"),
    Mutation("start.py", "self.shares.base & -BLOCK_PAIRS", "self.shares.base",
             "pairs of a block that not all channels have share slices"),
    Mutation("start.py", "front.complete & Cat(others).all()", "front.complete",
             "a matrix is prepared ahead of its turn"),
]  # fmt: skip


def zeros() -> Machine:
    """Every sum is 0."""
    machine = Machine(SIZE.channels, 7)
    machine.a[:] = 0
    for _ in range(6):
        machine.add(random_case(machine.rng, SIZE.channels, SIZE))
    return machine


def is_right(program: Path) -> bool:
    machines = [zeros(), turns(SIZE.channels)]
    machines += [random_machine(seed, SIZE, 6) for seed in range(32)]
    try:
        for k, machine in enumerate(machines):
            machine.check(program, 0, 70 * (k % 2), k)
    except AssertionError:  # it hangs, or F differs
        return False
    return True


@pytest.mark.slow
def test_without_an_error_all_is_right() -> None:
    assert is_right(engine(SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.error)
def test_is_caught(mutation: Mutation) -> None:
    copy = mutated(mutation, package.__name__)
    size = copy.EngineSize(2, 16, 2, 4, 24, 24 * 24, twin=True)
    assert not is_right(engine(SIZE, unit=copy.MatrixEngine(size, 16)))
