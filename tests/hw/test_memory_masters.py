"""AXI masters and the weight FIFO, in front of a memory that checks every rule."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from axi_memory import AxiMemory, ProtocolError
from long_lists import one_in

from flightllm.hw.memory import axi, read_master, write_master
from flightllm.hw.memory.read_master import ReadMaster
from flightllm.hw.memory.weight_fifo import WeightFifo
from flightllm.hw.memory.write_master import WriteMaster
from flightllm.spec.timing import BURST_BEATS, WRITES

BYTES = 1 << 14
STREAMS = [*itertools.product((0.0, 0.4, 0.8), repeat=2)]
"""Chance of a cycle without an offer, and of one in which nobody takes it."""


def simulate(dut: Any, bench: Callable[[Any], Any]) -> None:
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


class Source:
    """Offers items on a stream, with pauses."""

    def __init__(self, port: Any, items: list[dict[str, int]], idle: float, rng: Any) -> None:
        self.port, self.items, self.idle, self.rng = port, list(items), idle, rng
        self.offered = False

    def before(self, ctx: Any) -> None:
        if not self.offered and self.items and self.rng.random() >= self.idle:
            self.offered = True
            for name, value in self.items[0].items():
                ctx.set(getattr(self.port.payload, name), value)
        ctx.set(self.port.valid, int(self.offered))

    def after(self, ctx: Any) -> None:
        """Looks at ready, when everything has been set."""
        if self.offered and ctx.get(self.port.ready):
            self.items.pop(0)
            self.offered = False


class Sink:
    """Takes from a stream, with pauses; checks that an offer stands."""

    def __init__(self, port: Any, stall: float, rng: Any) -> None:
        self.port, self.stall, self.rng = port, stall, rng
        self.got: list[int] = []
        self.held: int | None = None

    def before(self, ctx: Any) -> None:
        self.ready = self.rng.random() >= self.stall
        ctx.set(self.port.ready, int(self.ready))

    def after(self, ctx: Any) -> None:
        valid, payload = ctx.get(self.port.valid), ctx.get(self.port.payload)
        if self.held is not None:
            assert valid and payload == self.held, "the offer changed"
        self.held = payload if valid and not self.ready else None
        if valid and self.ready:
            self.got.append(payload)


def random_commands(rng: Any, beat: int, count: int) -> list[tuple[int, int, int]]:
    """(address, beats, vector); some begin right before 4 KiB."""
    out = []
    for _ in range(count):
        beats = int(rng.integers(0, 50))
        address = int(rng.integers(0, (BYTES - beats * beat) // beat)) * beat
        if rng.random() < 0.4:
            address = 4096 - int(rng.integers(1, 4)) * beat
        out.append((address, beats, int(rng.integers(0, 2))))
    return out


def read(beat: int, commands: list[tuple[int, int, int]], idle: float, stall: float,
         latency: int = 5, seed: int = 0, limit: int = 20000, **sizes: int) -> Any:  # fmt: skip
    """Beats to each FIFO, what was expected, the memory, and the cycles it took."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (1, BYTES), np.uint8)
    dut = ReadMaster(beat, 20, **{"weight_beats": 64, "vector_beats": 20, **sizes})
    memory = AxiMemory(data, [dut.axi], latency=latency, stall=stall, seed=seed)
    items = [{"address": a, "beats": n, "vector": v} for a, n, v in commands]
    source = Source(dut.i, items, idle, rng)
    sinks = [Sink(port, stall, rng) for port in (dut.weights, dut.vectors)]
    want: list[list[int]] = [[], []]
    for address, beats, vector in commands:
        rows = data[0, address : address + beats * beat].reshape(-1, beat)
        want[1 - (not vector)] += [int.from_bytes(row.tobytes(), "little") for row in rows]

    async def bench(ctx: Any) -> None:
        while source.items or any(len(s.got) < len(w) for s, w in zip(sinks, want)):
            for part in (source, *sinks):
                part.before(ctx)
            memory.step(ctx)
            for part in (source, *sinks):
                part.after(ctx)
            await ctx.tick()
            assert memory.cycle < limit, "hangs"
        await ctx.tick()
        assert ctx.get(dut.idle) and not ctx.get(dut.error)

    simulate(dut, bench)
    return [sink.got for sink in sinks], want, memory, memory.cycle


@pytest.mark.parametrize("idle, stall", STREAMS)
@pytest.mark.parametrize("beat", [16, 64])
def test_reads(beat: int, idle: float, stall: float) -> None:
    commands = random_commands(np.random.default_rng(beat), beat, 14)
    got, want, memory, _ = read(beat, commands, idle, stall)
    assert got == want
    assert any(address % 4096 == 0 for _, address, _ in memory.bursts)  # cut at 4 KiB


def test_reads_keep_the_bus_busy() -> None:
    _, _, _, cycles = read(16, [(0, 640, 0)], 0, 0, latency=100, weight_beats=160)
    assert cycles < 640 + 100 + 12


def fill() -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (1, BYTES), np.uint8)
    dut = ReadMaster(16, 20, 40, 16)
    memory = AxiMemory(data, [dut.axi])

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.payload.beats, 200)
        ctx.set(dut.i.valid, 1)
        for _ in range(300):  # nobody takes a beat
            memory.step(ctx)
            await ctx.tick()
            ctx.set(dut.i.valid, 0)
        assert 24 <= memory.beats <= 40

    simulate(dut, bench)


def test_a_full_fifo_is_never_overrun() -> None:
    fill()


def abort_read(abort_at: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (1, BYTES), np.uint8)
    dut = ReadMaster(16, 20, 64, 32)
    memory = AxiMemory(data, [dut.axi], latency=9, stall=0.3, seed=seed, fail=(0,))

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.payload.beats, 60)
        ctx.set(dut.i.valid, 1)
        for cycle in range(abort_at + 1):
            ctx.set(dut.abort, int(cycle == abort_at))
            memory.step(ctx)
            await ctx.tick()
        ctx.set(dut.abort, 0)
        ctx.set(dut.i.payload.address, 1024)
        ctx.set(dut.i.payload.beats, 20)
        sink = Sink(dut.weights, 0.2, rng)
        sent = False
        for _ in range(400):
            ctx.set(dut.i.valid, int(not sent))
            sink.before(ctx)
            memory.step(ctx)
            if not sent and ctx.get(dut.i.ready):
                sent = True
            sink.after(ctx)
            await ctx.tick()
        rows = data[0, 1024 : 1024 + 320].reshape(-1, 16)
        assert sink.got == [int.from_bytes(row.tobytes(), "little") for row in rows]
        assert ctx.get(dut.idle) and not ctx.get(dut.error) and memory.quiet

    simulate(dut, bench)


@pytest.mark.parametrize("abort_at", [1, 3, 5, 14, 25, 60])
def test_abort_drains_reads(abort_at: int) -> None:
    abort_read(abort_at)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_error_responses_stick(kind: str) -> None:
    data = np.zeros((1, BYTES), np.uint8)
    dut = ReadMaster(16, 20, 64, 32) if kind == "read" else WriteMaster(16, 20)
    ports = {"reads": [dut.axi]} if kind == "read" else {"writes": [dut.axi]}
    memory = AxiMemory(data, **ports, fail=(512,))

    async def bench(ctx: Any) -> None:
        for address, bad in ((256, 0), (512, 1), (256, 1)):
            ctx.set(dut.i.payload.address, address)
            ctx.set(dut.i.payload.beats, 2)
            ctx.set(dut.i.valid, 1)
            if kind == "write":
                ctx.set(dut.data.valid, 1)
            for _ in range(30):
                memory.step(ctx)
                await ctx.tick()
                ctx.set(dut.i.valid, 0)
            assert ctx.get(dut.error) == bad

    simulate(dut, bench)


# ------------------------------------------------------------------------------------ writes


def write(beat: int, idle: float, stall: float, seed: int = 0, latency: int = 5) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (1, BYTES), np.uint8)
    want = data.copy()
    dut = WriteMaster(beat, 20, outstanding=4)
    memory = AxiMemory(data, writes=[dut.axi], latency=latency, stall=stall, seed=seed)
    commands, beats = [], []
    for address, count, _ in random_commands(rng, beat, 14):
        commands.append({"address": address, "beats": count})
        for k in range(count):
            new, strobe = rng.integers(0, 256, beat, np.uint8), rng.random(beat) < 0.5
            bits = sum(1 << i for i in range(beat) if strobe[i])
            beats.append({"bytes": int.from_bytes(new.tobytes(), "little"), "strobe": bits})
            at = address + k * beat
            want[0, at : at + beat][strobe] = new[strobe]
    parts = [Source(dut.i, commands, idle, rng), Source(dut.data, beats, idle, rng)]

    async def bench(ctx: Any) -> None:
        while any(part.items for part in parts) or not ctx.get(dut.idle):
            for part in parts:
                part.before(ctx)
            memory.step(ctx)
            for part in parts:
                part.after(ctx)
            await ctx.tick()
            assert memory.cycle < 20000, "hangs"
        assert memory.quiet and not ctx.get(dut.error)

    simulate(dut, bench)
    assert np.array_equal(data, want)


@pytest.mark.parametrize("idle, stall", STREAMS)
@pytest.mark.parametrize("beat", [16, 64])
def test_writes(beat: int, idle: float, stall: float) -> None:
    write(beat, idle, stall)


def abort_write(abort_at: int) -> None:
    data = np.zeros((1, BYTES), np.uint8)
    dut = WriteMaster(16, 20)
    memory = AxiMemory(data, writes=[dut.axi], latency=7, stall=0.4, seed=abort_at)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.i.payload.beats, 40)
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.data.payload.strobe, 0xFFFF)
        ctx.set(dut.data.payload.bytes, 1)
        for cycle in range(abort_at + 1):
            ctx.set(dut.data.valid, int(cycle % 3 > 0))
            ctx.set(dut.abort, int(cycle == abort_at))
            memory.step(ctx)
            await ctx.tick()
        for part in (dut.abort, dut.i.valid, dut.data.valid):
            ctx.set(part, 0)
        for _ in range(2 * WRITES * BURST_BEATS):  # every burst that may be begun
            memory.step(ctx)
            await ctx.tick()
        assert ctx.get(dut.idle) and memory.quiet, "the bus is not clean"
        ctx.set(dut.i.payload.address, 8192)
        ctx.set(dut.i.payload.beats, 1)
        ctx.set(dut.i.valid, 1)
        ctx.set(dut.data.valid, 1)
        ctx.set(dut.data.payload.bytes, (1 << 128) - 1)
        for _ in range(40):
            memory.step(ctx)
            taken = ctx.get(dut.i.ready), ctx.get(dut.data.ready)
            await ctx.tick()
            for port, went in zip((dut.i, dut.data), taken):
                if went:
                    ctx.set(port.valid, 0)
        assert ctx.get(dut.idle)

    simulate(dut, bench)
    assert data[0, 8192:8208].tolist() == [255] * 16 and data[0, 8208:].sum() == 0


@pytest.mark.parametrize("abort_at", [1, 3, 6, 10, 33, 80])
def test_abort_completes_writes(abort_at: int) -> None:
    abort_write(abort_at)


# ------------------------------------------------------------------------------------ FIFO


@pytest.mark.parametrize("idle, stall", STREAMS)
@pytest.mark.parametrize("depth", [2, 5, 16])
def test_weight_fifo(depth: int, idle: float, stall: float) -> None:
    dut = WeightFifo(8, depth)
    rng = np.random.default_rng(depth)
    values = rng.integers(0, 256, 120).tolist()
    sink = Sink(dut.o, stall, rng)
    cycles = 0

    async def bench(ctx: Any) -> None:
        nonlocal cycles
        waiting, offered = list(values), False
        while len(sink.got) < len(values):
            if not offered and waiting and rng.random() >= idle:
                offered = True
                ctx.set(dut.i.payload, waiting[0])
            ctx.set(dut.i.valid, int(offered))
            sink.before(ctx)
            assert ctx.get(dut.level) == len(values) - len(waiting) - len(sink.got)
            if offered and ctx.get(dut.i.ready):
                waiting.pop(0)
                offered = False
            sink.after(ctx)
            await ctx.tick()
            cycles += 1
            assert cycles < 2000

    simulate(dut, bench)
    assert sink.got == values
    if not idle and not stall:
        assert cycles <= len(values) + 3


# ------------------------------------------------------------------------------------ planted


def _replaced(module: Any, old: str, new: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Plant a bug: `old` becomes `new` in the source of class `name`, which is made anew."""
    source = textwrap.dedent(inspect.getsource(getattr(module, name)))
    assert old in source, old
    space = dict(vars(module))
    exec(compile(source.replace(old, new), f"<{name} with a bug>", "exec"), space)  # noqa: S102
    monkeypatch.setattr(module, name, space[name])


def _plain_read() -> None:
    commands = [(4080, 5, 0), *random_commands(np.random.default_rng(3), 16, 8)]
    got, want, _, _ = read(16, commands, 0.2, 0.4, limit=3000)
    assert got == want
    fill()
    abort_read(14)


def _plain_write() -> None:
    write(16, 0.2, 0.4)
    for at in (6, 33):
        abort_write(at)


BUGS = [
    ("read_master", "ReadMaster", "part.busy & room for", "part.busy for", _plain_read),
    ("read_master", "ReadMaster", "== which)", "!= which)", _plain_read),
    ("read_master", "ReadMaster", "(~axi.arvalid | axi.arready)", "1", _plain_read),
    ("read_master", "ReadMaster", "axi.rvalid & axi.rlast", "axi.rvalid", _plain_read),
    ("read_master", "_Transfers", "splitter.clear.eq(self.clear)", "splitter.clear.eq(0)",
     _plain_read),
    ("axi", "Splitter", "left <= to_edge", "left <= BURST_BEATS", _plain_read),
    ("write_master", "WriteMaster", "place == bursts.r_data", "place == 15", _plain_write),
    ("write_master", "WriteMaster", "beat.strobe)", "-1)", _plain_write),
    ("write_master", "WriteMaster", "(self.data.valid | clear)", "self.data.valid", _plain_write),
    ("write_master", "WriteMaster", "(~axi.wvalid | axi.wready)", "1", _plain_write),
    ("write_master", "WriteMaster", "quiet.eq(pending == 0)", "quiet.eq(1)", _plain_write),
]


def str_id(part: Any) -> str:
    """The same in every process: no address of a function."""
    return part.__name__ if callable(part) else str(part)[:40]


@pytest.mark.parametrize("place, name, old, new, check", one_in(4, BUGS), ids=str_id)
def test_planted_bugs_are_caught(place: str, name: str, old: str, new: str, check: Any,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    check()
    module = {"axi": axi, "read_master": read_master, "write_master": write_master}[place]
    _replaced(module, old, new, monkeypatch, name)
    made = getattr(module, name)
    for other in (read_master, write_master):
        if hasattr(other, name):
            monkeypatch.setattr(other, name, made)
    monkeypatch.setitem(globals(), name, made)
    with pytest.raises(AssertionError):
        check()


def test_fifos_hold_a_burst() -> None:
    with pytest.raises(ValueError, match="vector_beats must be at least 16, not 8"):
        ReadMaster(16, 20, 64, 8)
    assert issubclass(ProtocolError, AssertionError)
