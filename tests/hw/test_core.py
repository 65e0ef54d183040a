"""Parts of a core: queues, priorities at the buffers, monitors, errors; each with planted bugs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from flightllm.hw.core import buffers, errors, monitor, queue
from flightllm.spec.isa import QUEUE_DEPTH, Unit
from flightllm.spec.registers import ErrorCode

Scene = Callable[[Any], None]


def simulate(dut: Any, bench: Any) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


# ------------------------------------------------------------------------------------ queue


def words_and_addresses(space: Any) -> None:
    """Words pass in order; no more instructions wait than the instruction set says."""
    dut = space["UnitQueue"](Unit.MM, 8)
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 22, 60).tolist()
    words = [(w == 0, k + 7, 1000 * k + w) for k, n in enumerate(lengths) for w in range(n)]

    async def bench(ctx: Any) -> None:
        left, got, begun, given, most = list(words), [], 0, 0, 0
        for cycle in range(4000):
            first, address, word = left[0] if left else (0, 0, 0)
            ctx.set(dut.i.valid, bool(left))
            ctx.set(dut.i.payload, word)
            ctx.set(dut.first, int(first))
            ctx.set(dut.address, address)
            ctx.set(dut.o.ready, int(cycle > 800 and rng.random() < 0.7))
            start = begun < given and cycle > 800 and rng.random() < 0.1
            ctx.set(dut.started, int(start))
            if start:
                assert ctx.get(dut.next) == begun + 7 and not ctx.get(dut.empty)
                begun += 1
            if left and ctx.get(dut.i.ready):
                given += left.pop(0)[0]
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                got.append(ctx.get(dut.o.payload))
            most = max(most, given - begun)
            await ctx.tick()
            if start:
                assert ctx.get(dut.current) == begun + 6
        assert most == QUEUE_DEPTH and begun == len(lengths)
        assert got == [word for _, _, word in words] and ctx.get(dut.empty)

    simulate(dut, bench)


# ------------------------------------------------------------------------------------ buffers


def priorities(space: Any) -> None:
    """Each port goes to its first user; others wait; accesses outside are told with their user."""
    dut = space["CoreBuffers"](256, 256, 4, 8, 16, 8)
    users = space["USERS"]

    async def bench(ctx: Any) -> None:
        writers = (dut.misc_f, dut.engine_f_write, dut.ld_f_write, dut.sys_f_write)
        for k, port in enumerate(writers):
            ctx.set(port.addr, 10 * k)
            ctx.set(port.count, 2)
            ctx.set(port.data[0], 100 + k)
            ctx.set(port.data[1], 200 + k)
        for active in range(1, 16):
            for k, port in enumerate(writers):
                ctx.set(port.en if k == 0 else port.valid, active >> k & 1)
            ready = [1] + [ctx.get(port.ready) for port in writers[1:]]
            first = min(k for k in range(4) if active >> k & 1)
            for k in range(1, 4):
                assert not active >> k & 1 or ready[k] == (k == first)
            wrote = dut.f_written
            assert ctx.get(wrote.valid) and ctx.get(wrote.addr) == 10 * first
            assert users[ctx.get(wrote.user)] == ("misc", "engine", "ld", "sys")[first]
            await ctx.tick()
        for k, port in enumerate(writers):
            ctx.set(port.en if k == 0 else port.valid, 0)
        for port, at in ((dut.ld_f_read, 10), (dut.misc_y, 30)):
            last = port is dut.misc_y
            ctx.set(port.addr, at)
            if last:
                ctx.set(port.en, 1)
                assert not ctx.get(dut.ld_f_read.ready), "the SFU was refused"
            else:
                ctx.set(port.count, 2)
                ctx.set(port.valid, 1)
                assert ctx.get(port.ready)
            await ctx.tick()
        ctx.set(dut.misc_y.en, 0)
        await ctx.tick()
        assert ctx.get(dut.misc_y.data[0]) == 103 and ctx.get(dut.misc_y.data[1]) == 203
        ctx.set(dut.ld_f_read.valid, 0)
        await outside(ctx)

    async def outside(ctx: Any) -> None:
        cases = [
            (dut.st_f_read, "valid", 253, 4, "st"), (dut.ld_f_read, "valid", 2**32 - 1, 1, "ld"),
            (dut.engine_f_write, "valid", 254, 3, "engine"), (dut.misc_a, "en", 256, 1, "misc"),
            (dut.sys_a_write, "valid", 255, 2, "sys"), (dut.misc_x, "en", 256, None, "misc"),
            (dut.engine_a_read, "valid", 256, None, "engine"),
        ]  # fmt: skip
        for port, enable, at, count, user in cases:
            for bad in (1, 0):
                ctx.set(port.addr, at - (0 if bad else 32) & 0xFFFFFFFF if at < 2**31 else at * bad)
                if count is not None:
                    ctx.set(port.count, count)
                ctx.set(getattr(port, enable), 1)
                assert ctx.get(dut.outside) == bad << users.index(user), (user, at, bad)
                await ctx.tick()
                ctx.set(getattr(port, enable), 0)

    simulate(dut, bench)


# ------------------------------------------------------------------------------------ monitor


def reasons_and_counts(space: Any) -> None:
    """Running and waiting are told apart, and every cycle is counted once."""
    dut = space["UnitMonitor"](3)

    async def bench(ctx: Any) -> None:
        s = dut.semaphores
        ctx.set(dut.count, 1)
        assert ctx.get(dut.waits.idle)
        ctx.set(dut.queued, 1)
        ctx.set(s.waiting, 1)
        ctx.set(dut.missing, 0b10)
        assert ctx.get(dut.waits.tokens) == 2 and not ctx.get(dut.waits.idle)
        await ctx.tick().repeat(5)
        ctx.set(dut.missing, 0)
        ctx.set(s.granted, 1)
        assert ctx.get(dut.started)
        await ctx.tick()
        ctx.set(s.waiting, 0)
        ctx.set(s.granted, 0)
        ctx.set(dut.queued, 0)
        for reason in ("fifo", "read", "write", "cores"):
            ctx.set(getattr(dut, reason), 1)
            assert ctx.get(dut.waits[reason]) and ctx.get(dut.running)
            await ctx.tick().repeat(2)
            ctx.set(getattr(dut, reason), 0)
        ctx.set(dut.beats, 3)
        await ctx.tick().repeat(7)
        ctx.set(dut.beats, 0)
        ctx.set(s.done, 1)  # and the next one starts at once
        ctx.set(s.waiting, 1)
        ctx.set(s.granted, 1)
        await ctx.tick()
        ctx.set(s.waiting, 0)
        ctx.set(s.granted, 0)
        assert ctx.get(dut.running)
        await ctx.tick()
        ctx.set(s.done, 0)
        assert not ctx.get(dut.running)
        ctx.set(dut.fifo, 1)
        assert not ctx.get(dut.waits.fifo), "nothing runs"
        await ctx.tick()
        counted = [ctx.get(dut.counters[name]) for name in space["COUNTERS"]]
        assert counted == [17, 13, 2, 21]
        ctx.set(dut.clear, 1)
        await ctx.tick()
        assert not any(ctx.get(dut.counters[name]) for name in space["COUNTERS"])

    simulate(dut, bench)


# ------------------------------------------------------------------------------------ errors


def first_fault(space: Any) -> None:
    """The first fault stays, with its unit's address; the dispatcher's is the last one."""
    dut = space["ErrorLatch"](3, 8)

    async def bench(ctx: Any) -> None:
        for k in range(7):
            ctx.set(dut.addresses[k], 10 + k)
        last = (space["DISPATCHER"], 16)
        for unit, wanted in ((2, 12), last, (0, 10), (5, 15), last, (2, 12), (3, 13)):
            for k, fault in ((1, unit), (2, 4)):
                ctx.set(dut.faults[k].valid, 1)
                ctx.set(dut.faults[k].unit, fault)
                ctx.set(dut.faults[k].code, ErrorCode(k))
                ctx.set(dut.faults[k].channel, k)
            await ctx.tick()
            ctx.set(dut.faults[1].valid, 0)
            ctx.set(dut.addresses[2], 99)
            await ctx.tick().repeat(2)
            error = dut.error
            found = [ctx.get(error[name]) for name in ("code", "unit", "channel")]
            assert found == [1, unit, 1] and ctx.get(dut.address) == wanted and ctx.get(dut.failed)
            ctx.set(dut.faults[2].valid, 0)
            ctx.set(dut.clear, 1)
            await ctx.tick()
            assert not ctx.get(dut.failed) and ctx.get(dut.error.as_value()) == 0
            ctx.set(dut.clear, 0)
            ctx.set(dut.addresses[2], 12)

    simulate(dut, bench)


SCENES: dict[Scene, Any] = {
    words_and_addresses: queue, priorities: buffers, reasons_and_counts: monitor,
    first_fault: errors,
}  # fmt: skip
MUTATIONS: dict[Scene, list[tuple[str, str]]] = {
    words_and_addresses: [
        ("room.eq(~self.first | places.w_rdy)", "room.eq(1)"),
        ("places.w_en.eq(self.i.valid & self.i.ready & self.first)",
         "places.w_en.eq(self.i.valid & self.i.ready)"),
        ("depth=QUEUE_DEPTH)", "depth=QUEUE_DEPTH - 1)"),
    ],
    priorities: [
        ('_F_WRITES = ("misc", "engine", "ld"', '_F_WRITES = ("misc", "ld", "engine"'),
        ('("misc_y", "ld", "st", "sys")', '("ld", "misc_y", "st", "sys")'),
        ("Mux(who == USERS.index(\"misc\"), 1, port.count)", "1"),
        ("end > size", "end >= size + 2"),
    ],
    reasons_and_counts: [
        ('"BUSY": self.running', '"BUSY": self.running & ~held'),
        ("with m.If(self.started & ~self.reset):", "with m.If(self.started & ~self.ended):"),
        ("waits[reason].eq(self.running & getattr(self, reason))",
         "waits[reason].eq(getattr(self, reason))"),
        ("held | (~self.running & self.missing.any())", "held"),
    ],
    first_fault: [
        ("some & ~self.failed", "some"),
        ("in reversed(faults)", "in faults"),
        ("Mux(nowhere, self.addresses[len(UNITS)], places[first.unit])", "places[first.unit]"),
    ],
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_part(scene: Scene) -> None:
    scene(vars(SCENES[scene]))


@pytest.mark.parametrize(("scene", "old", "new"), [
    (scene, *pair) for scene, pairs in MUTATIONS.items() for pair in pairs
], ids=lambda part: part.__name__ if callable(part) else "")  # fmt: skip
def test_planted_bugs_are_caught(scene: Scene, old: str, new: str) -> None:
    text = textwrap.dedent(inspect.getsource(SCENES[scene]))
    assert text.count(old) == 1, old
    space: dict[str, Any] = {"__name__": "planted"}
    exec(text.replace(old, new), space)
    with pytest.raises(AssertionError):
        scene(space)
