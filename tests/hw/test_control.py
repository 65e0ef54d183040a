"""The host's registers and the run, in front of cores made of Python."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from small_board import small_board

from flightllm.hw.control import run as run_module
from flightllm.hw.control import unit as unit_module
from flightllm.spec import registers as host
from flightllm.spec.registers import Access

BOARD = small_board(channels=(1, 2), slrs=())
START, ABORT, RESET = 1, 2, 4
BUSY, DONE, ERROR, ABORTED = 1, 2, 4, 8


class Host:
    """Drives the AXI4-Lite port and plays the cores.

    Members
    -------
    length : cycles from a core's start to its halt, None for never. fail : at that cycle it fails.
    drain : cycles until a cleared core is quiet. still : nothing moves from that cycle on.
    """

    def __init__(self, ctx: Any, dut: Any, seed: int = 0) -> None:
        self.ctx, self.dut, self.rng = ctx, dut, np.random.default_rng(seed)
        self.cores = [dut.core0, dut.core1]
        self.length: list[int | None] = [20, 30]
        self.fail: list[int | None] = [None, None]
        self.drain, self.still = 5, 10**9
        self.age, self.quiet_in = [-1, -1], [0, 0]
        self.failed, self.halted, self.seen = [0, 0], [0, 0], []
        self.memory = [[[0] * 1024 for _ in range(2)] for _ in range(2)]
        self.asked = [[0, 0], [0, 0]]

    async def tick(self) -> None:
        """One cycle of the cores."""
        ctx = self.ctx
        for c, core in enumerate(self.cores):
            ctx.set(core.halted, self.halted[c])
            ctx.set(core.failed, self.failed[c])
            ctx.set(core.quiet, int(self.quiet_in[c] == 0))
            ctx.set(core.moving, int(0 <= self.age[c] < self.still))
        for c, core in enumerate(self.cores):
            self.quiet_in[c] = max(0, self.quiet_in[c] - 1)
            if ctx.get(core.clear):
                self.age[c], self.quiet_in[c] = -1, self.drain
            if ctx.get(core.forget):
                self.failed[c] = self.halted[c] = 0
            if ctx.get(core.start):
                self.age[c] = 0
                self.seen.append((c, ctx.get(core.entry), ctx.get(core.pos), ctx.get(core.steps)))
            elif self.age[c] >= 0:
                self.age[c] += 1
                self.halted[c] |= self.age[c] == self.length[c]
                self.failed[c] |= self.age[c] == self.fail[c]
            self.failed[c] |= ctx.get(core.expired) | ctx.get(core.aborted)
            for which, port in enumerate((core.program, core.params)):
                if ctx.get(port.enable):
                    self.memory[c][which][ctx.get(port.address)] = ctx.get(port.data)
                ctx.set(port.value, self.memory[c][which][self.asked[c][which]])
                self.asked[c][which] = ctx.get(port.address) % 1024
        await ctx.tick()

    async def write(self, name: str, value: int, core: int = 0, index: int = 0) -> None:
        """Write a register."""
        await self.write_at(host.address(name, index, core), value)

    async def write_at(self, address: int, value: int, strobes: int = 15) -> None:
        """Write at an address; it and the data may come apart."""
        ctx, axi = self.ctx, self.dut.axi
        ctx.set(axi.awaddr, address)
        ctx.set(axi.wdata, value)
        ctx.set(axi.wstrb, strobes)
        first, second = (axi.awvalid, axi.wvalid) if self.rng.random() < 0.5 else (
            axi.wvalid, axi.awvalid)  # fmt: skip
        ctx.set(first, 1)
        if self.rng.random() < 0.5:
            await self.tick()
        ctx.set(second, 1)
        while not ctx.get(axi.awready):
            await self.tick()
        assert ctx.get(axi.wready)
        await self.tick()
        ctx.set(first, 0)
        ctx.set(second, 0)
        for _ in range(int(self.rng.integers(3))):
            assert ctx.get(axi.bvalid) and not ctx.get(axi.bresp)
            await self.tick()
        ctx.set(axi.bready, 1)
        while not ctx.get(axi.bvalid):
            await self.tick()
        await self.tick()
        ctx.set(axi.bready, 0)

    async def read(self, name: str, core: int = 0, index: int = 0) -> int:
        """Read a register."""
        return await self.read_at(host.address(name, index, core))

    async def read_at(self, address: int) -> int:
        """Read at an address."""
        ctx, axi = self.ctx, self.dut.axi
        ctx.set(axi.araddr, address)
        ctx.set(axi.arvalid, 1)
        while not ctx.get(axi.arready):
            await self.tick()
        await self.tick()
        ctx.set(axi.arvalid, 0)
        while not ctx.get(axi.rvalid):
            await self.tick()
        for _ in range(int(self.rng.integers(3))):
            await self.tick()
        value = int(ctx.get(axi.rdata))
        assert not ctx.get(axi.rresp)
        ctx.set(axi.rready, 1)
        await self.tick()
        ctx.set(axi.rready, 0)
        return value

    async def settle(self) -> int:
        """Wait until nothing is under way; STATUS."""
        for _ in range(300):
            status = await self.read("STATUS")
            if not status & BUSY:
                return status
        raise AssertionError("busy for ever")


def simulate(body: Any, control: Any = unit_module.Control) -> None:
    """Run `body(host)` against a control unit."""
    dut = control(BOARD)

    async def bench(ctx: Any) -> None:
        await body(Host(ctx, dut))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


async def registers(h: Host) -> None:
    """Everything that a host may write reads back, and nothing else moves."""
    assert await h.read("ID") == host.IDENTIFICATION
    digest = "".join([f"{await h.read('CONFIG_DIGEST', 0, k):08x}" for k in range(8)])
    assert digest == BOARD.digest
    shape = await h.read("SHAPE")
    assert (shape & 0xFF, shape >> 8 & 0xFF, shape >> 16) == (2, 6, BOARD.top_k)
    wanted = {}
    for core in range(2):
        for register in (*host.DEVICE_REGISTERS, *host.CORE_REGISTERS):
            if register.access is not Access.WRITE or register.name == "MEMORY_DATA":
                continue
            mine = register in host.CORE_REGISTERS
            count = BOARD.channels[core] if "CHANNEL" in register.name else register.count
            for index in range(count if mine or not core else 0):
                width = sum(f.mask for f in register.fields) or 0xFFFFFFFF
                value = int(h.rng.integers(1 << 32)) & width
                await h.write(register.name, value, core, index)
                wanted[register.name, core, index] = value
    for (name, core, index), value in wanted.items():
        assert await h.read(name, core, index) == value, name
    bases = [
        wanted["CHANNEL_BASE_HIGH", c, k] << 32 | wanted["CHANNEL_BASE_LOW", c, k]
        for c, count in enumerate(BOARD.channels) for k in range(count)
    ]  # fmt: skip
    assert [h.ctx.get(base) for base in h.dut.base] == bases


async def elsewhere(h: Host) -> None:
    """Addresses that are no register's read 0 and write nothing; bytes are written one by one."""
    await h.write("POS", 0x12345678)
    pos = host.address("POS")
    for wrong in (pos + 1, pos + 2, pos + 3, host.address("ID"), 0xFFC, 0x7000):
        await h.write_at(wrong, 0xFFFFFFFF)
        assert wrong == host.address("ID") or await h.read_at(wrong) == 0
        assert await h.read("POS") == 0x12345678 and not h.seen
    await h.write_at(pos, 0xAABBCCDD, 0b0101)
    assert await h.read("POS") == 0x12BB56DD
    assert await h.read("ID") == host.IDENTIFICATION


async def memories(h: Host) -> None:
    """Words go where MEMORY_ADDRESS says, and come back."""
    for core, params in ((0, 0), (1, 1)):
        words = h.rng.integers(1 << 32, size=4).tolist()
        await h.write("MEMORY_ADDRESS", params << 31 | 7, core)
        for word in words:
            await h.write("MEMORY_DATA", word, core)
        assert h.memory[core][params][7:11] == words
        await h.write("MEMORY_ADDRESS", params << 31 | 7, core)
        assert [await h.read("MEMORY_DATA", core) for _ in words] == words
    h.length = [None, None]
    await h.write("CONTROL", START)
    await h.write("MEMORY_ADDRESS", 7, 0)
    before = h.memory[0][0][7]
    await h.write("MEMORY_DATA", 1 ^ before, 0)
    assert h.memory[0][0][7] == before, "written while a run is under way"


async def runs(h: Host) -> None:
    """A run ends when every core halted; its registers go to every core."""
    await h.write("ENTRY", 77, 1)
    await h.write("POS", 9)
    await h.write("STEPS", 4)
    await h.write("INTERRUPT_ENABLE", 1)
    for _ in range(2):
        await h.write("CONTROL", START)
        assert await h.settle() & 15 == DONE
        assert h.ctx.get(h.dut.interrupt) and await h.read("INTERRUPT_STATUS") == 1
        await h.write("INTERRUPT_STATUS", 7)
        assert await h.read("INTERRUPT_STATUS") == 0
        await h.tick()
        assert not h.ctx.get(h.dut.interrupt)
        assert await h.read("CYCLES_LOW") in range(30, 35)
    assert h.seen == [(0, 0, 9, 4), (1, 77, 9, 4)] * 2


async def failures(h: Host) -> None:
    """The core that failed first is named; the others are stopped; the next run is clean."""
    h.length, h.fail, h.drain = [None, None], [None, 12], 40
    await h.write("INTERRUPT_ENABLE", 2)
    await h.write("CONTROL", START)
    assert await h.settle() == ERROR | 1 << 8
    assert h.ctx.get(h.dut.interrupt) and h.age == [-1, -1]
    h.length, h.fail = [9, 9], [None, None]
    await h.write("CONTROL", START)
    assert await h.settle() == DONE


async def aborts(h: Host) -> None:
    """Abort and reset wait for the bus, at any time; a start meanwhile is ignored."""
    for command, status in ((ABORT, ABORTED), (RESET, 0)):
        for length, wait in ((None, 5), (20, 120), (None, 100), (None, 0)):
            h.length, h.drain = [length] * 2, 60
            await h.write("INTERRUPT_STATUS", 7)
            await h.write("CONTROL", START)
            for _ in range(wait):
                await h.tick()
            starts = len(h.seen)
            await h.write("CONTROL", command)
            await h.write("CONTROL", START)
            done = DONE if length and command == ABORT else 0
            assert await h.settle() & 15 == status | done
            assert max(h.quiet_in) == 0 and len(h.seen) == starts
            events = await h.read("INTERRUPT_STATUS")
            assert bool(events & 4) == (command == ABORT)
            h.seen.clear()


async def watchdog(h: Host) -> None:
    """A run in which nothing moves ends, one that is only slow does not."""
    h.length = [400, 400]
    await h.write("WATCHDOG", 100)
    await h.write("CONTROL", START)
    assert await h.settle() & 15 == DONE
    h.length, h.still = [None, None], 50
    await h.write("CONTROL", START)
    assert await h.settle() & 15 == ERROR
    assert await h.read("CYCLES_LOW") in range(150, 156)


SCENES = [registers, elsewhere, memories, runs, failures, aborts, watchdog]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_control(scene: Any) -> None:
    simulate(scene)


MUTATIONS = [
    (run_module, "self.halted.all()", "self.halted.any()"),
    (run_module, "with m.State(\"drain\"), m.If(self.quiet.all()):", "with m.State(\"drain\"):"),
    (run_module, "reversed(range(len(self.failed)))", "range(0)"),
    (run_module, "Mux(self.moving.any() | self.expired, 0, still + 1)", "still + 1"),
    (run_module, "with m.If(starting & ~cancelled):", "with m.If(starting):"),
    (unit_module, "& (address.word < depth) & ~self.run.busy", "& (address.word < depth)"),
    (unit_module, "return address == window * CORE_WINDOW + offset",
     "return address[2:] == (window * CORE_WINDOW + offset) // 4"),
    (unit_module, "bit & ~written[field.low]", "bit"),
    (unit_module, "address.word.eq(address.word + 1)", "address.word.eq(address.word)"),
    (unit_module, "(old & ~slave.mask) |", "old |"),
]


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_planted_bugs_are_caught(number: int) -> None:
    module, old, new = MUTATIONS[number]
    spaces = {m: {"__name__": m.__name__} for m in (run_module, unit_module)}
    for target in (run_module, unit_module):
        text = textwrap.dedent(inspect.getsource(target))
        if target is module:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        exec(text, spaces[target])
    spaces[unit_module]["RunControl"] = spaces[run_module]["RunControl"]
    with pytest.raises(AssertionError):
        for scene in SCENES:
            simulate(scene, spaces[unit_module]["Control"])
