"""Front ends and semaphores: instructions arrive whole, in order, and not before their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from source_mutation import Mutation, mutated

from flightllm.hw import frontend, semaphores
from flightllm.hw.frontend import HEADER, UnitFrontEnd, unit_instructions
from flightllm.hw.semaphores import Semaphores
from flightllm.spec.isa import Instruction, Unit

PRESENT = (Unit.LD, Unit.MM, Unit.MISC)
TOKENS = 255


@dataclass(frozen=True)
class Item:
    """An instruction: its words, and the units it waits for and releases."""

    kind: Instruction
    wait: frozenset[Unit]
    release: frozenset[Unit]
    words: tuple[int, ...]


def bits(units: frozenset[Unit]) -> int:
    return sum(1 << unit for unit in units)


def random_items(rng: Any, count: int) -> list[tuple[Unit, Item]]:
    """Instructions of the units in an order in which each finds its tokens."""
    tokens = {(a, b): 0 for a in PRESENT for b in PRESENT if a != b}
    out = []
    for _ in range(count):
        unit = PRESENT[rng.integers(len(PRESENT))]
        others = [other for other in PRESENT if other != unit]
        wait = frozenset(o for o in others if tokens[o, unit] and rng.random() < 0.8)
        release = frozenset(o for o in others if rng.random() < 0.5)
        for other in wait:
            tokens[other, unit] -= 1
        for other in release:
            tokens[unit, other] += 1
        kinds = unit_instructions(unit)
        kind = kinds[rng.integers(len(kinds))]
        header = HEADER.const({
            "opcode": kind.unit, "function": kind.function, "wait": bits(wait),
            "release": bits(release), "flags": int(rng.integers(1 << 12)),
        }).as_bits()  # fmt: skip
        words = rng.integers(0, 1 << 32, kind.words - 1).tolist()
        out.append((unit, Item(kind, wait, release, (header, *words))))
    return out


@dataclass
class Side:
    """What one unit has got, begun and ended."""

    items: list[Item]
    words: list[int] = field(default_factory=list)
    offered: bool = False
    begun: int = 0
    left: int = 0  # cycles until it is done; 0 while it is idle


class Bench:
    """Front ends of three units on the semaphores, and a model that counts tokens itself."""

    def __init__(self, seed: int, front: Any = UnitFrontEnd, tokens: Any = Semaphores) -> None:
        self.rng = np.random.default_rng(seed)
        plan = random_items(self.rng, 60)
        self.sides = {u: Side([item for unit, item in plan if unit == u]) for u in PRESENT}
        for side in self.sides.values():
            side.words = [word for item in side.items for word in item.words]
        self.tokens = {(a, b): 0 for a in PRESENT for b in PRESENT if a != b}
        self.semaphores = tokens()
        self.fronts = {unit: front(unit) for unit in PRESENT}

    def design(self) -> Module:
        m = Module()
        m.submodules.semaphores = self.semaphores
        for unit, front in self.fronts.items():
            m.submodules[f"front{unit}"] = front
            wiring.connect(m, front.semaphores, getattr(self.semaphores, f"unit{unit}"))
        return m

    def run(self, cycles: int = 1200) -> None:
        simulator = Simulator(self.design())
        simulator.add_clock(1e-6)

        async def bench(ctx: Any) -> None:
            for _ in range(cycles):
                if all(side.begun == len(side.items) for side in self.sides.values()):
                    break
                for unit, side in self.sides.items():
                    self._drive(ctx, self.fronts[unit], side)
                for unit, side in self.sides.items():
                    self._watch(ctx, unit, side)
                await ctx.tick()
            for side in self.sides.values():
                assert side.begun == len(side.items), "not all were executed"
            assert not ctx.get(self.semaphores.overflow)

        simulator.add_testbench(bench)
        simulator.run()

    def _drive(self, ctx: Any, front: Any, side: Side) -> None:
        side.offered = bool(side.words) and (side.offered or self.rng.random() < 0.7)
        ctx.set(front.queue.valid, int(side.offered))
        ctx.set(front.queue.payload, side.words[0] if side.offered else 0)
        ctx.set(front.done, int(side.left == 1))

    def _watch(self, ctx: Any, unit: Unit, side: Side) -> None:
        front = self.fronts[unit]
        assert ctx.get(front.busy) == bool(side.left or ctx.get(front.start))
        if side.left:
            assert not ctx.get(front.start), "starts while it runs"
            self._check(ctx, front, side.items[side.begun - 1])
            side.left -= 1
            if not side.left:
                for other in side.items[side.begun - 1].release:
                    self.tokens[unit, other] += 1
        elif ctx.get(front.start):
            item = side.items[side.begun]
            for other in item.wait:
                self.tokens[other, unit] -= 1
                assert self.tokens[other, unit] >= 0, "starts before its tokens are there"
            self._check(ctx, front, item)
            side.begun += 1
            side.left = int(self.rng.integers(1, 9))
        if ctx.get(front.queue.valid) and ctx.get(front.queue.ready):
            side.words.pop(0)
            side.offered = False

    def _check(self, ctx: Any, front: Any, item: Item) -> None:
        header = ctx.get(front.function), ctx.get(front.flags)
        assert header == (item.kind.function, item.words[0] >> 20)
        found = [ctx.get(front.operands[k]) for k in range(len(item.words) - 1)]
        assert found == list(item.words[1:])


@pytest.mark.parametrize("seed", range(3))
def test_instructions_start_with_their_words_and_tokens(seed: int) -> None:
    Bench(seed).run()


def _count(kind: Any, given: int, taken: int) -> tuple[bool, int]:
    """LD gives MM tokens, MM takes some; whether it overflowed, and how many more MM can take."""
    dut = kind()
    out: list[Any] = []

    async def bench(ctx: Any) -> None:
        giver, taker = dut.unit0, dut.unit2
        ctx.set(giver.release, 1 << Unit.MM)
        ctx.set(taker.wait, 1 << Unit.LD)
        for port, name, times in ((giver, "done", given), (taker, "waiting", taken)):
            ctx.set(getattr(port, name), 1)
            for _ in range(times):
                await ctx.tick()
            ctx.set(getattr(port, name), 0)
        out.append(bool(ctx.get(dut.overflow)))
        ctx.set(taker.waiting, 1)
        more = 0
        while ctx.get(taker.granted) and more <= TOKENS:
            more += 1
            await ctx.tick()
        assert ctx.get(dut.missing2) == 1 << Unit.LD
        ctx.set(taker.waiting, 0)
        assert ctx.get(dut.missing2) == 0
        out.append(more)
        ctx.set(giver.done, 1)
        await ctx.tick()
        ctx.set(giver.done, 0)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        ctx.set(taker.waiting, 1)
        assert not ctx.get(taker.granted), "a token outlives clear"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return out[0], out[1]


def counts_are_right(kind: Any) -> None:
    assert _count(kind, 7, 3) == (False, 4)
    assert _count(kind, TOKENS, 0) == (False, TOKENS)
    assert _count(kind, TOKENS + 1, 0) == (True, TOKENS)


def test_tokens_are_counted_up_to_their_limit() -> None:
    counts_are_right(Semaphores)


FRONT, TOKEN = "frontend.py", "semaphores.py"
MUTATIONS = [
    Mutation(FRONT, "ready.eq(~self.busy | self.done)", "ready.eq(1)",
             "an instruction starts while another runs"),
    Mutation(FRONT, "self.semaphores.release.eq(header.release)",
             "self.semaphores.release.eq(next_header.release)", "the next one's tokens are given"),
    Mutation(FRONT, "self.queue.ready.eq(~complete)", "self.queue.ready.eq(1)",
             "words run over an instruction that waits"),
    Mutation(FRONT, "missing.eq(counts[word.function])",
             "missing.eq(counts[word.function] - (counts[word.function] > 2))",
             "an instruction starts a word early"),
    Mutation(FRONT, "                self.operands.eq(collected),\n", "",
             "operands are never handed on"),
    Mutation(TOKEN, "with m.Elif(given & ~taken):", "with m.Elif(given):",
             "a token taken while one is given stays"),
    Mutation(TOKEN, "port.granted.eq(port.waiting & ~missing.any())",
             "port.granted.eq(port.waiting & ~missing.all())", "one token is enough"),
    Mutation(TOKEN, "given.eq(ports[other].done & ports[other].release[unit])",
             "given.eq(ports[other].done)", "everybody gets a token"),
    Mutation(TOKEN, "[count.eq(count), self.overflow.eq(1)]", "[count.eq(count)]",
             "nobody hears of an overflow"),
    Mutation(TOKEN, "m.d.sync += count.eq(0)", "pass", "tokens of the run before"),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.error)
def test_planted_bugs_are_caught(mutation: Mutation) -> None:
    front, tokens = UnitFrontEnd, Semaphores
    if mutation.file == FRONT:
        front = mutated(mutation, frontend.__name__).UnitFrontEnd
    else:
        tokens = mutated(mutation, semaphores.__name__).Semaphores
    with pytest.raises(AssertionError):
        counts_are_right(tokens)
        for seed in range(3):
            Bench(seed, front, tokens).run()
