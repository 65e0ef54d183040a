"""SYS and the exchange: cores meet, and slices arrive in every core before anybody goes on."""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from long_lists import one_in
from unit_bench import BufferModel, queue_words

from flightllm.hw import exchange
from flightllm.spec.encoding import Op

LANES, LEVELS, WINDOW, WORDS = 4, 16, 16, 256
Gather = tuple[bool, int, int, int, int]  # act, addr, n, n1, stride


class Cores(wiring.Component):
    """SYS units and what is between them."""

    def __init__(self, count: int, space: Any) -> None:
        self.units = [space["SystemUnit"](LANES, LEVELS, WINDOW, count) for _ in range(count)]
        self.exchange = space["Exchange"](LANES, LEVELS, count)
        super().__init__({})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.exchange = self.exchange
        for c, unit in enumerate(self.units):
            m.submodules[f"unit{c}"] = unit
            wiring.connect(m, unit.link, getattr(self.exchange, f"core{c}"))
        return m


class Bench:
    """Cores with their buffers, fed at random times.

    Parameters
    ----------
    programs : instructions of each core. stall : chance of every handshake to wait.
    """

    patience = 6000

    def __init__(self, programs: list[list[Op]], stall: float, seed: int, space: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.dut = Cores(len(programs), space)
        self.f = [self.rng.integers(0, 1 << 32, WORDS, np.uint32) for _ in programs]
        self.a = [self.rng.integers(0, 256, WORDS, np.uint8) for _ in programs]
        slow = min(0.9, 2 * stall)  # one core falls behind
        self.models = [
            [BufferModel(x[c], stall if c else slow, self.rng) for x in (self.f, self.a)]
            for c in range(len(programs))
        ]
        self.words = [[word for op in ops for word in queue_words(op)] for ops in programs]
        self.total, self.stall = len(programs[0]), stall
        self.done = [0] * len(programs)
        self.offered = [False] * len(programs)
        self.faults: set[int] = set()
        self.cycles, self.meeting = 0, [0] * len(programs)

    def step(self, ctx: Any, quiet: bool) -> None:
        """One cycle, before its clock edge."""
        for c, unit in enumerate(self.dut.units):
            if not self.offered[c] and self.words[c] and self.rng.random() >= self.stall:
                self.offered[c] = True
                ctx.set(unit.queue.payload, self.words[c][0])
            ctx.set(unit.queue.valid, int(self.offered[c]))
            ctx.set(unit.quiet, int(quiet))
            waiting = ctx.get(unit.semaphores.waiting)
            ctx.set(unit.semaphores.granted, int(waiting and self.rng.random() >= self.stall / 4))
            f, a = self.models[c]
            f.step(ctx, [unit.f_read], [unit.f_write])
            a.step(ctx, [unit.a_read], [unit.a_write])
            if ctx.get(unit.fault):
                self.faults.add(c)
            if self.offered[c] and ctx.get(unit.queue.ready):
                self.words[c].pop(0)
                self.offered[c] = False

    def run(self, check: Any, quiet_from: int = 0) -> None:
        """Run to the end; `check(core, index)` at the end of each instruction."""

        async def bench(ctx: Any) -> None:
            while min(self.done) < self.total:
                self.step(ctx, self.cycles >= quiet_from)
                finished = [ctx.get(unit.semaphores.done) for unit in self.dut.units]
                for c, now in enumerate(finished):
                    if now:
                        check(c, self.done[c])
                        self.done[c] += 1
                await ctx.tick()
                self.cycles += 1
                assert self.cycles < self.patience, "hangs"

        simulator = Simulator(self.dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


def places(item: Gather) -> np.ndarray:
    """Indices of a slice's elements."""
    _, addr, n, n1, stride = item
    return (addr + np.arange(n1)[:, None] * stride + np.arange(n)).reshape(-1)


def random_gathers(rng: Any, cores: int, count: int) -> list[list[Gather | None]]:
    """Steps with each core's slice of it, apart from the others'; None is a barrier."""
    out: list[list[Gather | None]] = []
    for _ in range(count):
        if rng.random() < 0.3:
            out.append([None] * cores)
            continue
        act, rows = bool(rng.integers(2)), int(rng.integers(1, 4))
        room = WORDS // rows // cores
        step: list[Gather | None] = []
        for c in range(cores):
            n = int(rng.integers(0, room + 1))
            n1 = rows if rng.random() < 0.9 else 0
            step.append((act, c * room + int(rng.integers(0, room - n + 1)), n, n1, WORDS // rows))
        out.append(step)
    return out


def exchange_runs(cores: int, stall: float, seed: int, space: Any = None) -> Bench:
    """Random gathers and barriers; every buffer is checked whenever a core goes on."""
    steps = random_gathers(np.random.default_rng(seed), cores, 6)
    programs = []
    for c in range(cores):
        ops = []
        for step in steps:
            item = step[c]
            if item is None:
                ops.append(Op.make("sys.barrier"))
            else:
                names = dict(zip(("addr", "n", "n1", "stride"), item[1:]))
                ops.append(Op.make("sys.gather", *(["act"] if item[0] else []), **names))
        programs.append(ops)
    bench = Bench(programs, stall, seed, space or vars(exchange))
    want = [[array.copy() for array in kind] for kind in (bench.f, bench.a)]
    arrived = [0] * cores

    def state(index: int) -> None:
        """What `want` is after step `index`."""
        for c in range(cores):
            item = steps[index][c]
            if item is not None:
                kind, where = want[item[0]], places(item)
                for other in range(cores):
                    kind[other][where] = kind[c][where]

    reached = -1

    def check(core: int, index: int) -> None:
        nonlocal reached
        arrived[core] = index + 1
        assert min(arrived) >= index, "a core left before all had come"
        if index > reached:
            state(index)
            reached = index
        assert np.array_equal(bench.f[core], want[0][core]), f"F of core {core}, step {index}"
        assert np.array_equal(bench.a[core], want[1][core]), f"A of core {core}, step {index}"

    bench.run(check)
    assert [list(x) for x in bench.f] == [list(x) for x in want[0]]
    assert not bench.faults
    return bench


@pytest.mark.parametrize("cores, stall, seed", [(2, 0.0, 1), (3, 0.4, 2), (2, 0.8, 3)])
def test_slices_arrive_before_a_core_goes_on(cores: int, stall: float, seed: int) -> None:
    exchange_runs(cores, stall, seed)


@pytest.mark.parametrize("kinds", ["gbg", "bgb", "bbg", "gbb"])
def test_a_gather_that_meets_a_barrier_is_a_fault(kinds: str) -> None:
    gather, barrier = Op.make("sys.gather", addr=0, n=8, n1=1, stride=0), Op.make("sys.barrier")
    bench = Bench([[gather if kind == "g" else barrier] for kind in kinds], 0.3, 1, vars(exchange))
    bench.patience = 400
    with contextlib.suppress(AssertionError):  # some go on, some wait: the fault ends the run
        bench.run(lambda core, index: None)
    assert bench.faults == {c for c, kind in enumerate(kinds) if kind != kinds[0]}


@pytest.mark.parametrize("flags, size", [((), LANES), (("act",), LEVELS)])
def test_a_message_a_cycle(flags: tuple[str, ...], size: int) -> None:
    cycles = []
    for n in (4 * size, 8 * size - 1):
        programs = [
            [Op.make("sys.gather", *flags, addr=at, n=n, n1=1, stride=0)] for at in (0, WORDS // 2)
        ]
        bench = Bench(programs, 0.0, 1, vars(exchange))
        bench.run(lambda core, index: None)
        cycles.append(bench.cycles)
    assert cycles[1] - cycles[0] == 2 * 4


def test_halt_waits_for_the_other_units() -> None:
    for quiet_from in (0, 150):
        bench = Bench([[Op.make("sys.nop"), Op.make("sys.halt")]], 0.0, 1, vars(exchange))
        ends: list[int] = []
        bench.run(lambda core, index: ends.append(bench.cycles), quiet_from)  # noqa: B023
        assert ends[0] < 12 and ends[1] >= quiet_from


def test_one_core_meets_nobody() -> None:
    program = [Op.make("sys.gather", addr=0, n=8, n1=1, stride=0), Op.make("sys.barrier")]
    bench = Bench([program], 0.0, 1, vars(exchange))
    before = bench.f[0].copy()
    bench.run(lambda core, index: None)
    assert np.array_equal(bench.f[0], before) and bench.cycles < 40


MUTATIONS = [
    ("self.link.full.eq(inbox.level >= INBOX // 4)", "self.link.full.eq(0)"),
    ("told & (missing == 0)", "told"),
    ("told & (missing == 0)", "(missing == 0)"),
    ("row.eq(following), at.eq(following)", "row.eq(following), at.eq(row)"),
    ("mine.valid.eq(bus.valid & ~part[\"sent\"].valid)", "mine.valid.eq(bus.valid & (c == 0))"),
    ("with m.State(\"leave\"):  # until", "with m.State(\"leave\"), m.If(0):  # until"),
    ("part[\"barrier\"] ^ there[0][\"barrier\"]", "part[\"barrier\"]"),
    ("last_part.eq(left <= most)", "last_part.eq(left <= self._lanes)"),
    ("Cat(part[\"here\"] for part in there).all()", "Cat(part[\"here\"] for part in there).any()"),
]


@pytest.mark.parametrize("number", one_in(3, range(len(MUTATIONS))))
def test_planted_bugs_are_caught(number: int) -> None:
    old, new = MUTATIONS[number]
    text = textwrap.dedent(inspect.getsource(exchange))
    assert text.count(old) == 1, old
    space: dict[str, Any] = {"__name__": "planted"}
    exec(text.replace(old, new), space)
    with pytest.raises(AssertionError):
        for seed in range(4):
            exchange_runs(3, 0.2 * seed, seed, space)
