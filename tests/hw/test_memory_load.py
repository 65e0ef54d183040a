"""The LD unit against the functional simulator: F and every weight FIFO hold the same."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from axi_memory import AxiMemory
from hand_program import board, program
from long_lists import one_in
from unit_bench import UnitBench, execute, queue_words, simulate

from flightllm.hw.memory import arithmetic, load, stream_plan, vector_load
from flightllm.hw.memory.arithmetic import Arithmetic, ChunkSize
from flightllm.hw.memory.load import LoadUnit
from flightllm.sim.functional.core import CoreState
from flightllm.spec.encoding import Op
from flightllm.spec.formats import (
    MatrixFormat,
    Second,
    block_bytes,
    chunk_bytes,
    row_shares,
    section_bytes,
    stream_bytes,
)
from flightllm.spec.isa import Unit

pytest.importorskip("numba")

BASE, SIZE = 64, 24576
F_WORDS = 2048
SHAPES = [(2, 16, 8), (1, 16, 2), (3, 64, 16), (2, 32, 4)]


def random_format(rng: Any) -> MatrixFormat:
    kind = rng.integers(0, 4)
    if kind == 0:
        return MatrixFormat(int(rng.choice([4, 8])), int(rng.choice([16, 48])), second=Second.EMIT,
                            cyclic=True)  # fmt: skip
    if kind == 1:
        return MatrixFormat(int(rng.choice([4, 8])), 32, scale=False, whole=True)
    return MatrixFormat(
        int(rng.integers(2, 9)), int(rng.choice([32, 64])), second=Second(int(rng.integers(0, 3))),
        kept=int(rng.choice([16, 16, 8, 4])), private=bool(rng.integers(0, 2)),
    )  # fmt: skip


def stream_op(rng: Any, channels: int) -> Op:
    """An ld.stream that stays inside the table."""
    while True:
        fmt = random_format(rng)
        rows, kgroups = int(rng.integers(0, 60)), int(rng.integers(1, 6))
        first, start = int(rng.integers(0, 5)), int(rng.integers(0, 9))
        if fmt.cyclic:
            kgroups = 1
            size = (first + -(-rows // 32)) * chunk_bytes(fmt)
        elif fmt.whole:
            size = (first + kgroups) * block_bytes(fmt, -(-rows // channels) + 2)
        else:
            size = max(stream_bytes(fmt, rows, kgroups, channels))
        if size <= 6000:
            addr = (BASE + int(rng.integers(0, SIZE - size))) // 64
            return Op.make("ld.stream", addr=max(addr, 1), rows=rows, kgroups=kgroups,
                           fmt=fmt.word, first=first, start=start)  # fmt: skip


def vector_op(rng: Any, f: np.ndarray) -> Op:
    """An ld.vec or ld.gather; sets the row numbers in `f`, past word 1900, for the latter."""
    n, count = int(rng.integers(1, 90)), int(rng.integers(0, 5))
    step = n + int(rng.integers(0, 5))
    where = {"n": n, "count": count, "dst": int(rng.integers(0, 1000)), "dstride": step,
             "addr": int(rng.integers(1, 50)), "mstride": int(rng.integers(6, 15))}  # fmt: skip
    flags = ["half"] if rng.integers(0, 2) else []
    if rng.integers(0, 2):
        return Op.make("ld.vec", *flags, **where)
    index, stride = 1900 + int(rng.integers(0, 9)), int(rng.integers(1, 3))
    f[index : index + count * stride : stride] = rng.integers(0, 20, count)
    return Op.make("ld.gather", *flags, **where, index=index, istride=stride)


def expected_beats(op: Op, data: np.ndarray, beat: int) -> list[list[int]]:
    """What each channel streams, from spec.formats."""
    at = {name: value.imm for name, value in op.operands.items()}
    fmt, channels = MatrixFormat.from_word(at["fmt"]), len(data)
    sizes = stream_bytes(fmt, at["rows"], at["kgroups"], channels, at["first"], at["start"])
    out = []
    shares = row_shares(at["rows"], channels)
    for c, size in enumerate(sizes):
        skip = 0
        if fmt.cyclic:
            blocks = [b for b in range(at["first"], at["first"] + 99)
                      if (b + at["start"]) % channels == c]  # fmt: skip
            skip = blocks[0] // channels * chunk_bytes(fmt)
        elif fmt.whole:
            skip = at["first"] * block_bytes(fmt, shares[c][1] - shares[c][0])
        begin = at["addr"] * 64 + skip
        rows = data[c, begin : begin + size].reshape(-1, beat)
        out.append([int.from_bytes(row.tobytes(), "little") for row in rows])
    return out


def compare(shape: tuple[int, int, int], stall: float, seed: int, count: int = 12,
            make: Any = None) -> int:  # fmt: skip
    """Run random instructions on both; the cycles they took."""
    channels, beat, lanes = shape
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (channels, BASE + SIZE), np.uint8)
    data.view(np.uint16)[(data.view(np.uint16) & 0x7C00) == 0x7C00] ^= 0x4000  # no fp16 NaN
    config = dataclasses.replace(board([channels]), float_words=F_WORDS)
    core = CoreState(program(config, [[]], {"table": data[:, BASE:]}), 0, 0)
    f = rng.integers(0, 1 << 30, F_WORDS, np.uint32)
    ops: list[Op] = []
    for _ in range(count):
        ops.append(stream_op(rng, channels) if rng.random() < 0.5 else vector_op(rng, f))
    if make is not None:
        ops = make(ops)
    core.f.data.view(np.uint32)[:] = f
    beats: list[list[int]] = [[] for _ in range(channels)]
    for op in ops:
        if op.kind.name == "ld.stream":
            for mine, more in zip(beats, expected_beats(op, data, beat)):
                mine += more
    dut = LoadUnit(channels, beat, lanes, 1024 if beat < 64 else 2048, channel_bytes=1 << 20)
    memory = AxiMemory(data, dut.axi, latency=7, stall=stall / 2, seed=seed)
    bench = UnitBench(dut, memory, f, None, stall, seed)

    def done(i: int) -> None:
        if ops[i].kind.operands:
            execute(core, ops[i])
        assert np.array_equal(f, core.f.data.view(np.uint32)), f"F differs after {ops[i]}"

    cycles = bench.run(ops, done, limit=8000)
    assert bench.weights == beats, "the weight FIFOs differ"
    return cycles


@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_instructions(shape: tuple[int, int, int], stall: float) -> None:
    compare(shape, stall, seed=sum(shape))


def test_nothing_to_do() -> None:
    nop = Op.make("ld.nop")
    none = Op.make("ld.vec", addr=1, dst=0, n=0, count=3, mstride=1, dstride=1)
    empty = Op.make("ld.stream", addr=1, rows=0, kgroups=2, fmt=MatrixFormat(4, 32).word, first=0,
                    start=0)  # fmt: skip
    compare((2, 16, 8), 0.2, 3, 4, lambda ops: [nop, none, *ops[:2], empty, nop, *ops[2:]])


def test_streams_run_at_a_beat_a_cycle() -> None:
    fmt = MatrixFormat(4, 128)
    rows = 40
    size = max(stream_bytes(fmt, rows, 4, 2))
    stream = Op.make("ld.stream", addr=1, rows=rows, kgroups=4, fmt=fmt.word, first=0, start=0)
    cycles = compare((2, 16, 8), 0.0, 1, 0, lambda ops: [stream] * 2)
    assert cycles < 2 * size // 16 + 60


def test_a_matrix_behind_vectors_is_asked_for_before_they_are_there() -> None:
    vec = Op.make("ld.vec", addr=1, dst=0, n=64, count=1, mstride=1, dstride=1)
    stream = Op.make("ld.stream", addr=1, rows=20, kgroups=2, fmt=MatrixFormat(4, 32).word,
                     first=0, start=0)  # fmt: skip
    bound = dataclasses.replace(stream, wait=frozenset({Unit.ST}))
    soon, late = (
        compare((2, 16, 8), 0.0, 1, 0, lambda ops, last=last: [vec, last, vec, last])
        for last in (stream, bound)
    )
    assert soon + 40 < late


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 11, 32, 64])
def test_arithmetic(divisor: int) -> None:
    dut = Arithmetic(divisor)
    rng = np.random.default_rng(divisor)
    top = (1 << 20) - 1
    values = [0, 1, divisor, top, top - 1, *rng.integers(0, top, 20).tolist()]
    waits = []

    async def bench(ctx: Any) -> None:
        for divide in (0, 1):
            for b in values:
                a = int(rng.integers(0, 1 << 22))
                for name, value in (("divide", divide), ("a", a), ("b", b), ("start", 1)):
                    ctx.set(getattr(dut, name), value)
                cycles = 0
                while not ctx.get(dut.done):
                    await ctx.tick()
                    cycles += 1
                waits.append(cycles)
                if divide:
                    assert ctx.get(dut.quotient) == b // divisor
                    assert ctx.get(dut.remainder) == b % divisor
                else:
                    assert ctx.get(dut.product) == a * b & 0xFFFFFFFF
                await ctx.tick()  # `start` stays: it is no request in this cycle
                ctx.set(dut.start, 0)

    simulate(dut, bench)
    assert min(waits) == 1 and max(waits) == 5


def test_chunk_sizes() -> None:
    dut = ChunkSize()
    formats = [
        MatrixFormat(bits, group, scale, second, kept, private, indices)
        for bits in (2, 3, 5, 8) for group in (16, 32, 80, 256) for scale in (False, True)
        for second in (Second.NONE, Second.MINIMUM) for kept in (16, 8, 4, 2)
        for private in (False, True) for indices in (False, True)
    ]  # fmt: skip
    simulator = Simulator(dut)

    async def bench(ctx: Any) -> None:
        for fmt in formats:
            ctx.set(dut.word.as_value(), fmt.word)
            sizes = section_bytes(fmt)
            assert (ctx.get(dut.header), ctx.get(dut.chunk)) == (sum(sizes[:3]) // 64,
                                                                 sum(sizes) // 64), fmt  # fmt: skip

    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("abort_at", [30, 61, 95, 140])
def test_abort_then_run_again(abort_at: int) -> None:
    rng = np.random.default_rng(abort_at)
    data = rng.integers(0, 256, (2, BASE + SIZE), np.uint8)
    f = np.zeros(F_WORDS, np.uint32)
    dut = LoadUnit(2, 16, 8, 1024, channel_bytes=1 << 20)
    memory = AxiMemory(data, dut.axi, latency=20, stall=0.2, seed=1)
    bench = UnitBench(dut, memory, f, None, 0.1, 2)
    fmt = MatrixFormat(4, 32)
    stream = Op.make("ld.stream", addr=1, rows=50, kgroups=3, fmt=fmt.word, first=0, start=0)
    vec = Op.make("ld.vec", addr=3, dst=9, n=77, count=2, mstride=7, dstride=80)

    async def run(ctx: Any) -> None:
        bench._words = [w for op in (vec, stream, vec, stream) for w in queue_words(op)]
        for cycle in range(abort_at + 1):
            ctx.set(dut.abort, int(cycle == abort_at))
            bench.step(ctx)
            await ctx.tick()
        ctx.set(dut.abort, 0)
        bench._words, bench._offered = queue_words(stream) + queue_words(vec), False
        for got in bench.weights:
            got.clear()
        f[:] = 0
        done = 0
        for _ in range(1500):
            done += bench.step(ctx)
            await ctx.tick()
        assert done == 2 and ctx.get(dut.idle) and memory.quiet

    simulate(dut, run)
    assert bench.weights == expected_beats(stream, data, 16)
    for i in range(2):  # 39 pairs: 20 in channel 0, 19 in channel 1
        rows = [part[192 + i * 448 :][:160].copy().view(np.uint32).tolist() for part in data]
        assert f[9 + 80 * i :][:77].tolist() == [*rows[0], *rows[1][:37]]


BUGS = [
    (stream_plan, "StreamPlan", "place + turn >= self._channels", "0"),
    (stream_plan, "StreamPlan", "+ per_chunk - 1", "+ per_chunk"),
    (stream_plan, "StreamPlan", "Mux(cyclic, turn, self.channel) < extra", "self.channel < extra"),
    (stream_plan, "StreamPlan", '"skip_low", low, self.first', '"skip_low", low, 0'),
    (arithmetic, "ShareWalk", "share < left", "1"),
    (arithmetic, "ChunkSize", "times(stored, word.bits, 4) + 15", "times(stored, word.bits, 4)"),
    (vector_load, "VectorLoad", "waited == READ_LATENCY", "waited == 1"),
    (vector_load, "VectorLoad", "~asking & ~writing & ~full", "~asking & ~writing"),
    (vector_load, "VectorLoad", "(~full | self.f_write.ready)", "1"),
    (vector_load, "VectorLoad", "count.eq(Mux(last, left, width))", "count.eq(width)"),
    (load, "_Control", "self.vector.eq(is_vector & ~early)", "self.vector.eq(is_vector)"),
    (load, "_Control", "(ending & ~early)", "ending"),
    (load, "_Control", "Mux(early | begin, coming, now)", "now"),
]


def planted(module: Any, name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `old` by `new` in the source of class `name`, wherever the class is used."""
    source = textwrap.dedent(inspect.getsource(getattr(module, name)))
    assert old in source, old
    space = dict(vars(module))
    exec(compile(source.replace(old, new), f"<{name} with a bug>", "exec"), space)  # noqa: S102
    for user in (module, stream_plan, vector_load, load):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, space[name])
    if name in globals():
        monkeypatch.setitem(globals(), name, space[name])


@pytest.mark.parametrize("module, name, old, new", one_in(4, BUGS), ids=lambda part: str(part)[:30])
def test_planted_bugs_are_caught(module: Any, name: str, old: str, new: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    planted(module, name, old, new, monkeypatch)
    with pytest.raises(AssertionError):
        test_chunk_sizes()
        for seed in range(4):
            compare((3, 16, 8), 0.3, seed, 14)
