"""F and A buffers and their arbiters against a flat array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator

from flightllm.hw.memory import buffers
from flightllm.hw.memory.buffers import (
    ABuffer,
    FBuffer,
    ReadArbiter,
    WriteArbiter,
    read_port,
    window_port,
    write_port,
)


class Arbitrated(wiring.Component):
    """A buffer with `users` readers on its first port and `users` writers."""

    def __init__(self, lanes: int, users: int) -> None:
        self.buffer = FBuffer(64, lanes, 1)
        self.read = ReadArbiter(read_port(lanes), users)
        self.write = WriteArbiter(write_port(lanes, 32), users)
        ports = {f"read{i}": self.read.signature.members[f"user{i}"] for i in range(users)}
        ports |= {f"write{i}": self.write.signature.members[f"user{i}"] for i in range(users)}
        super().__init__(ports)
        self.users = users

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules += [self.buffer, self.read, self.write]
        wiring.connect(m, self.read.port, self.buffer.read0)
        wiring.connect(m, self.write.port, self.buffer.write)
        for i in range(self.users):
            for name in ("read", "write"):
                outer, inner = getattr(self, f"{name}{i}"), getattr(getattr(self, name), f"user{i}")
                wiring.connect(m, wiring.flipped(outer), inner)
        return m


def exercise(dut: Any, readers: list[Any], writers: list[Any], size: int, cycles: int,
             seed: int) -> int:  # fmt: skip
    """Random reads and writes on all ports at once; the reads that were compared."""
    rng = np.random.default_rng(seed)
    width = len(writers[0].data[0])
    lanes = len(writers[0].data)
    model = rng.integers(0, 1 << width, size + 256, np.uint64)
    compared = 0

    async def bench(ctx: Any) -> None:
        nonlocal compared
        for at in range(0, size, lanes):  # what the model starts with
            put(ctx, writers[0], at, min(lanes, size - at), model[at : at + lanes])
            await ctx.tick()
            ctx.set(writers[0].valid, 0)
        waiting: list[tuple[int, Any, np.ndarray]] = []
        reads = [None] * len(readers)
        writes: list[Any] = [None] * len(writers)
        near = 0
        for cycle in range(cycles):
            for i, port in enumerate(readers):
                if reads[i] is None and rng.random() < 0.7:
                    # Often where the last write was, so that the order of both counts.
                    at = int(rng.integers(0, size)) if rng.random() < 0.5 else max(0, near - 2)
                    reads[i] = (at, int(rng.integers(1, len(port.data) + 1)))
                    ctx.set(port.addr, reads[i][0])
                    if hasattr(port, "count"):
                        ctx.set(port.count, reads[i][1])
                ctx.set(port.valid, int(reads[i] is not None))
            for i, port in enumerate(writers):
                if writes[i] is None and rng.random() < 0.6:
                    count = int(rng.integers(1, lanes + 1))
                    at = int(rng.integers(0, size - count))
                    writes[i] = (at, rng.integers(0, 1 << width, lanes, np.uint64), count)
                    put(ctx, port, at, count, writes[i][1])
                ctx.set(port.valid, int(writes[i] is not None))
            for due, port, want in [entry for entry in waiting if entry[0] == cycle]:
                got = [ctx.get(port.data[k]) for k in range(len(port.data))]
                assert got[: len(want)] == want.tolist(), f"cycle {due}"
                compared += 1
            waiting = [entry for entry in waiting if entry[0] > cycle]
            for i, port in enumerate(readers):
                if reads[i] is not None and ctx.get(port.ready):
                    at, count = reads[i]
                    want = model[at : min(at + len(port.data), size)].copy()
                    if hasattr(port, "count"):
                        want[count:] = 0
                    waiting.append((cycle + buffers.READ_LATENCY, port, want))
                    reads[i] = None
            for i, port in enumerate(writers):
                if writes[i] is not None and ctx.get(port.ready):
                    at, values, count = writes[i]
                    model[at : at + count] = values[:count]
                    writes[i], near = None, at
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return compared


def put(ctx: Any, port: Any, at: int, count: int, values: np.ndarray) -> None:
    ctx.set(port.addr, at)
    ctx.set(port.count, count)
    for k, value in enumerate(values.tolist()):
        ctx.set(port.data[k], value)
    ctx.set(port.valid, 1)


@pytest.mark.parametrize("words, lanes, readers", [(64, 8, 2), (90, 4, 1), (17, 1, 2), (50, 2, 1)])
def test_f_buffer(words: int, lanes: int, readers: int) -> None:
    dut = FBuffer(words, lanes, readers)
    ports = [getattr(dut, f"read{i}") for i in range(readers)]
    assert exercise(dut, ports, [dut.write], words, 300, lanes) > 150 * readers


@pytest.mark.parametrize("size, window, lanes", [(128, 16, 8), (200, 32, 4), (96, 16, 16)])
def test_a_buffer(size: int, window: int, lanes: int) -> None:
    dut = ABuffer(size, window, lanes)
    assert exercise(dut, [dut.read0], [dut.write], size, 200, window) > 100


@pytest.mark.parametrize("users", [1, 3])
def test_arbiters_share_a_port(users: int) -> None:
    dut = Arbitrated(4, users)
    readers = [getattr(dut, f"read{i}") for i in range(users)]
    writers = [getattr(dut, f"write{i}") for i in range(users)]
    assert exercise(dut, readers, writers, 64, 300, users) > 150


def test_the_lower_number_goes_first() -> None:
    dut = ReadArbiter(read_port(2), 3)
    simulator = Simulator(dut)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.port.ready, 1)
        for asking in range(8):
            for i in range(3):
                ctx.set(getattr(dut, f"user{i}").valid, asking >> i & 1)
                ctx.set(getattr(dut, f"user{i}").addr, i + 10)
            first = next((i for i in range(3) if asking >> i & 1), None)
            assert ctx.get(dut.port.valid) == (first is not None)
            for i in range(3):
                granted = asking >> i & 1 and ctx.get(getattr(dut, f"user{i}").ready)
                assert bool(granted) == (i == first)
            if first is not None:
                assert ctx.get(dut.port.addr) == first + 10

    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("row, lanes, message", [
    (12, 4, "row must be a power of two, not 12"),
    (16, 3, "lanes must be a power of two, not 3"),
    (16, 32, "lanes must be at most row 16, not 32"),
])  # fmt: skip
def test_impossible_shapes(row: int, lanes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ABuffer(256, row, lanes)


MUTATIONS = {
    "both rows from one memory": ("_read", lambda original: lambda self, m, port, pair, name:
        original(self, m, port, [pair[1], pair[1]], name)),
    "rows one further": ("_split", lambda original: lambda self, addr: (
        original(self, addr)[0], original(self, addr)[1] + (original(self, addr)[0] == 3))),
    "the written vector is not rotated": ("_write", lambda original: None),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_bugs_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, make = MUTATIONS[name]
    if place == "_write":
        rotate = buffers._rotated
        monkeypatch.setattr(buffers, "_rotated", lambda m, value, places, width, label: (
            value if label == "values" else rotate(m, value, places, width, label)))  # fmt: skip
    else:
        monkeypatch.setattr(buffers.Buffer, place, make(getattr(buffers.Buffer, place)))
    dut = FBuffer(64, 8, 1)
    with pytest.raises(Exception, match="cycle|driv"):
        exercise(dut, [dut.read0], [dut.write], 64, 300, 5)


def test_planted_latency_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "READ_LATENCY", 3)
    dut = FBuffer(64, 8, 1)
    with pytest.raises(AssertionError):
        exercise(dut, [dut.read0], [dut.write], 64, 300, 5)


def test_signals_of_ports() -> None:
    assert len(Signal(read_port(4).members["data"].shape).as_value()) == 128
    assert len(Signal(window_port(64).members["data"].shape).as_value()) == 512
    assert len(Signal(write_port(8, 8).members["data"].shape).as_value()) == 64
