"""A cocotb bench: the accelerator's AXI masters and AXI4-Lite slave against cocotbext-axi.

It runs inside the simulator (`tests/hw/test_axi_cocotb.py` starts it), on the design of
`copy_top.py`. `AxiRam` and `AxiLiteMaster` are Alex Forencich's, written apart from ours.
"""

from __future__ import annotations

import itertools
import os
import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

CHANNELS, BEAT, SIZE = 2, 16, 1 << 18
SOURCE, TARGET, BEATS, START, BUSY, ERROR, HIGH, PLANT, ABORT = range(0, 36, 4)
SHARES = (0.0, 0.3, 0.8)


def _pauses(share: float, seed: int):
    """Whether to pause, cycle by cycle."""
    rng = random.Random(seed)
    while True:
        yield rng.random() < share


class Watcher:
    """Notes every burst of a channel and holds it to the rules."""

    def __init__(self, dut, prefix: str) -> None:
        self.bursts: list[tuple[str, int, int]] = []
        self._dut, self._prefix = dut, prefix
        for kind in ("ar", "aw"):
            cocotb.start_soon(self._watch(kind))

    def _value(self, name: str) -> int:
        return int(getattr(self._dut, f"{self._prefix}_{name}").value)

    async def _watch(self, kind: str) -> None:
        waiting = None
        while True:
            await RisingEdge(self._dut.clk)
            valid, ready = self._value(f"{kind}valid"), self._value(f"{kind}ready")
            fields = tuple(
                self._value(kind + name) for name in ("addr", "len", "size", "burst", "id")
            )
            assert waiting is None or (valid and fields == waiting), f"{kind} changed"
            waiting = fields if valid and not ready else None
            if not (valid and ready):
                continue
            address, length, size, burst, number = fields
            bytes_ = (length + 1) * BEAT
            assert (burst, number, 1 << size) == (1, 0, BEAT) and length < 16
            assert address % BEAT == 0 and address % 4096 + bytes_ <= 4096
            self.bursts.append((kind, address, length + 1))


class Bench:
    """The design with a memory on each channel and a host."""

    def __init__(self, dut) -> None:
        self.dut = dut
        cocotb.start_soon(Clock(dut.clk, 10, "ns").start())
        bus = AxiLiteBus.from_prefix(dut, "s_axi_control")
        self.host = AxiLiteMaster(bus, dut.clk, dut.rst)
        self.rams, self.watchers = [], []
        for channel in range(CHANNELS):
            prefix = f"m_axi_{channel:02d}"
            bus = AxiBus.from_prefix(dut, prefix)
            self.rams.append(AxiRam(bus, dut.clk, dut.rst, size=SIZE))
            self.watchers.append(Watcher(dut, prefix))

    async def reset(self) -> None:
        self.dut.rst.value = 1
        for _ in range(4):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        await RisingEdge(self.dut.clk)

    def pause(self, idle: float, pressure: float) -> None:
        """Pauses of what the memory offers, and of what it takes."""
        for k, ram in enumerate(self.rams):
            ram.read_if.r_channel.set_pause_generator(_pauses(idle, k))
            ram.write_if.b_channel.set_pause_generator(_pauses(idle, k + 10))
            ram.read_if.ar_channel.set_pause_generator(_pauses(pressure, k + 20))
            ram.write_if.aw_channel.set_pause_generator(_pauses(pressure, k + 30))
            ram.write_if.w_channel.set_pause_generator(_pauses(pressure, k + 40))

    async def begin(self, source: int, target: int, beats: int) -> None:
        for place, value in ((SOURCE, source), (TARGET, target), (HIGH, 1), (BEATS, beats)):
            await self.host.write_dword(place, value)
        assert await self.host.read_dword(SOURCE) == source
        await self.host.write_dword(START, 1)
        await self.host.read_dword(BUSY)

    async def finish(self) -> None:
        for _ in range(20_000):
            await RisingEdge(self.dut.clk)
            await ReadOnly()
            if self.dut.interrupt.value == 1:
                await RisingEdge(self.dut.clk)
                return
        raise AssertionError("the interrupt never came")


@cocotb.test()
async def every_mix_of_pauses_copies_the_same(dut) -> None:
    """Data arrive, the bytes on either side stay, bursts cut at 4 KiB."""
    bench = Bench(dut)
    await bench.reset()
    rng = random.Random(2)
    for idle, pressure in itertools.product(SHARES, repeat=2):
        bench.pause(idle, pressure)
        beats = rng.choice((1, 15, 16, 17, 130))
        source = 4096 - BEAT * rng.randrange(1, 20)
        target = 0x20000 - BEAT * rng.randrange(1, 20)
        before = []
        for ram, watcher in zip(bench.rams, bench.watchers):
            ram.write(0, rng.randbytes(0x4000))
            ram.write(0x1F000, rng.randbytes(0x3000))
            before.append(bytearray(ram.read(0, SIZE)))
            watcher.bursts.clear()
        await bench.begin(source, target, beats)
        await bench.finish()
        for ram, want, watcher in zip(bench.rams, before, bench.watchers):
            want[target : target + beats * BEAT] = want[source : source + beats * BEAT]
            assert ram.read(0, SIZE) == bytes(want), (idle, pressure)
            for kind in ("ar", "aw"):
                assert sum(n for k, _, n in watcher.bursts if k == kind) == beats


@cocotb.test()
async def an_abort_leaves_the_bus_clean(dut) -> None:
    """After it the same masters copy again, and no answer of before is left."""
    bench = Bench(dut)
    await bench.reset()
    bench.pause(0.4, 0.4)
    rng = random.Random(3)
    for wait in (15, 40, 70, 120):
        await bench.begin(0x100, 0x8000, 200)
        for _ in range(wait):
            await RisingEdge(dut.clk)
        await bench.host.write_dword(ABORT, 1)
        while await bench.host.read_dword(BUSY):
            pass
        for ram in bench.rams:
            ram.write(0x100, rng.randbytes(0x1000))
        await bench.begin(0x100, 0x10100, 60)
        await bench.finish()
        for ram in bench.rams:
            assert ram.read(0x10100, 60 * BEAT) == ram.read(0x100, 60 * BEAT)


@cocotb.test()
async def strobes_choose_the_bytes_of_a_register(dut) -> None:
    bench = Bench(dut)
    await bench.reset()
    await bench.host.write_dword(BEATS, 0x11223344)
    await bench.host.write(BEATS + 1, b"\xaa\xbb")
    assert await bench.host.read_dword(BEATS) == 0x11BBAA44
    assert await bench.host.read_dword(0x800) == 0


@cocotb.test(skip=os.environ.get("AXI_BENCH_PLANT") is None)
async def a_planted_breach(dut) -> None:
    """Must fail: a burst crosses 4 KiB."""
    bench = Bench(dut)
    await bench.reset()
    await bench.host.write_dword(PLANT, 1)
    await bench.begin(0x100, 0x8000, 300)
    await bench.finish()
