"""The rotating accumulators, one or several sums a cycle, against `spec.numerics`, bit for bit."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from flightllm.hw.sfu import reduce
from flightllm.spec import numerics, timing


def reduced(space: Any, blocks: np.ndarray, first: int, width: int, at_once: int) -> tuple:
    """The sum that a `Reducer` of `width` makes of block sums, `at_once` of them a cycle, the first
    one's way being `first`; and the cycles from the last sum to the total."""
    dut, found = space["Reducer"](timing.ADD, width), []

    async def bench(ctx: Any) -> None:
        for at in range(0, len(blocks), at_once):
            part = blocks[at : at + at_once]
            for k, value in enumerate(part):
                ctx.set(dut.block[k].as_value(), int(value.view(np.uint32)))
            ctx.set(dut.way, (first + at) % 16)
            ctx.set(dut.count, len(part))
            await ctx.tick()
        ctx.set(dut.count, 0)
        ctx.set(dut.finish, 1)
        cycles = 0
        while not ctx.get(dut.done):
            await ctx.tick()
            ctx.set(dut.finish, 0)
            cycles += 1
        await ctx.tick()
        found.extend([np.uint32(ctx.get(dut.total.as_value())).view(np.float32), cycles])

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return tuple(found)


def wrong_sums(space: Any) -> list[tuple[int, int, int]]:
    """(blocks, width, at once) of which a `Reducer` gives another sum than `spec.numerics`, or not
    when `spec.timing` says."""
    rng, out = np.random.default_rng(1), []
    for width, at_once in ((1, 1), (4, 1), (4, 4)):
        for count in (1, 2, 5, 15, 16, 19, 67):
            blocks = np.square(rng.standard_normal(count).astype(np.float32))
            first = int(rng.integers(16 // at_once)) * at_once if count > 4 else 0
            total, cycles = reduced(space, blocks, first, width, at_once)
            late = abs(cycles - timing.reduce_cycles(first, count)) > 2
            if late or total != numerics.reduce_blocks(blocks, first):
                out.append((count, width, at_once))
    return out


def test_sums_have_the_bits_of_the_specification() -> None:
    assert wrong_sums(vars(reduce)) == []


@pytest.mark.parametrize("old, new", [
    ("self.way[:bits] == k", "Const(1)"),
    ("self.count > k, (", "self.count > 0, ("),
    ("last = self.way + self.count - 1", "last = self.way"),
    ("Cat(Const(k, bits), self.way[bits:])", "Cat(Const(0, bits), self.way[bits:])"),
    ("self.block[k].as_value(), ", "self.block[0].as_value(), "),
])  # fmt: skip
def test_planted_bugs_are_caught(old: str, new: str) -> None:
    text = inspect.getsource(reduce)
    assert text.count(old) == 1, old
    space: dict[str, Any] = {"__name__": "planted"}
    exec(text.replace(old, new), space)
    assert wrong_sums(space)


def test_adders_that_are_too_slow_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to 4, not 5"):
        reduce.Reducer(5, 4)
