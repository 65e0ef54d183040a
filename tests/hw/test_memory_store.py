"""The ST unit against the functional simulator: the same bytes in memory, no other byte touched."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
from axi_memory import AxiMemory
from hand_program import board, program
from long_lists import one_in
from unit_bench import UnitBench, execute, queue_words, simulate

from flightllm.hw.memory import (
    arithmetic,
    key_store,
    store,
    store_pipe,
    value_store,
    vector_store,
    write_master,
)
from flightllm.hw.memory.store import StoreUnit
from flightllm.hw.memory.store_pipe import StorePipe
from flightllm.sim.functional.core import CoreState
from flightllm.spec.encoding import Op
from flightllm.spec.formats import block_bytes, chunk_bytes, row_shares
from flightllm.spec.kvcache import key_format, value_format

pytest.importorskip("numba")

BASE, SIZE = 64, 12288
F_WORDS, A_BYTES = 1024, 2048
SHAPES = [(2, 16, 8, 64), (1, 16, 2, 32), (3, 64, 16, 128), (2, 32, 4, 32), (5, 64, 8, 64)]


def place(rng: Any, size: int) -> int:
    """An address at which `size` bytes fit, in units of 64."""
    assert size <= SIZE
    return (BASE + int(rng.integers(0, (SIZE - size) // 64 + 1)) * 64) // 64


def vector_op(rng: Any, channels: int) -> Op:
    n, count = int(rng.integers(1, 80)), int(rng.integers(0, 4))
    stride = 5 + int(rng.integers(0, 4))
    return Op.make("st.vec", addr=place(rng, 64 * 9 * 4), src=int(rng.integers(0, 500)), n=n,
                   count=count, mstride=stride, sstride=n + int(rng.integers(0, 4)))  # fmt: skip


def keys_op(rng: Any, channels: int) -> Op:
    fmt = key_format(int(rng.choice([8, 16, 40, 40, 64])), int(rng.choice([4, 4, 8])))
    heads, count = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pos = int(rng.choice([0, 1, 30, 31, 63, int(rng.integers(0, 32 * channels))]))
    region = -(-(pos + count) // (32 * channels)) * chunk_bytes(fmt)
    while region * heads > SIZE:
        heads, pos = 1, pos // 2
        region = -(-(pos + count) // (32 * channels)) * chunk_bytes(fmt)
    return Op.make("st.keys", addr=place(rng, region * heads), hstride=region // 64, heads=heads,
                   fmt=fmt.word, pos=pos, count=count, codes=int(rng.integers(0, 500)),
                   codes1=heads * fmt.group, kscale=int(rng.integers(0, 400)),
                   vscale=int(rng.integers(400, 900)), scale1=heads + 1,
                   start=int(rng.integers(0, 8)))  # fmt: skip


def values_op(rng: Any, channels: int) -> Op:
    fmt, rows = value_format(int(rng.choice([4, 8]))), int(rng.choice([8, 7, 16, 25, 2, 1]))
    heads, count = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    pos = int(rng.choice([0, 31, 30, int(rng.integers(0, 90))]))
    a, b = row_shares(rows, channels)[0]
    region = -(-(pos + count) // 32) * block_bytes(fmt, b - a)
    return Op.make("st.values", addr=place(rng, region * heads), hstride=region // 64, heads=heads,
                   rows=rows, fmt=fmt.word, pos=pos, count=count, codes=int(rng.integers(0, 900)),
                   codes1=heads * rows + 1, codes2=rows)  # fmt: skip


MAKERS = {"st.vec": vector_op, "st.keys": keys_op, "st.values": values_op}


def compare(shape: tuple[int, int, int, int], stall: float, seed: int, count: int = 9,
            names: tuple[str, ...] = tuple(MAKERS), slow: bool = False) -> int:  # fmt: skip
    """Run random instructions on both, behind a memory that mostly pauses if `slow`; the cycles
    they took."""
    channels, beat, lanes, window = shape
    rng = np.random.default_rng(seed)
    config = dataclasses.replace(board([channels]), float_words=F_WORDS, act_bytes=A_BYTES)
    core = CoreState(program(config, [[]], writable={"out": SIZE}), 0, 0)
    # Numbers that fp16 holds and that it does not: ST rounds and saturates as to_fp16.
    values = (rng.normal(size=F_WORDS) * 10.0 ** rng.integers(-9, 7, F_WORDS)).astype(np.float32)
    core.f.data[:] = values
    core.a.data[:] = rng.integers(-128, 128, A_BYTES)
    ops = [MAKERS[names[i % len(names)]](rng, channels) for i in range(count)]
    ops.insert(2, Op.make("st.nop"))
    data = np.zeros((channels, BASE + SIZE + 64), np.uint8)
    dut = StoreUnit(channels, beat, lanes, window, channel_bytes=1 << 20)
    memory = AxiMemory(data, writes=dut.axi, latency=6, stall=0.9 if slow else stall / 2, seed=seed)
    f, a = values.view(np.uint32).copy(), core.a.data.view(np.uint8).copy()
    bench = UnitBench(dut, memory, f, a, stall, seed)
    region = core.memory.find(BASE, SIZE)[0].data

    def done(i: int) -> None:
        if ops[i].kind.operands:
            execute(core, ops[i])
        assert np.array_equal(data[:, BASE : BASE + SIZE], region), f"memory differs: {ops[i]}"
        assert not data[:, :BASE].any() and not data[:, BASE + SIZE :].any(), ops[i]

    return bench.run(ops, done, limit=5000 if slow else 1500)


@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_instructions(shape: tuple[int, int, int, int], stall: float) -> None:
    compare(shape, stall, seed=sum(shape))


def test_a_vector_takes_a_read_a_cycle() -> None:
    def run(n: int) -> int:
        dut = StoreUnit(2, 16, 8, 64, channel_bytes=1 << 20)
        memory = AxiMemory(np.zeros((2, 8192), np.uint8), writes=dut.axi, latency=6)
        bench = UnitBench(dut, memory, np.zeros(2048, np.uint32), np.zeros(64, np.uint8), 0, 0)
        op = Op.make("st.vec", addr=1, src=0, n=n, count=1, mstride=0, sstride=0)
        return bench.run([op], lambda i: None)

    assert run(1600) - run(800) == 200  # 16-byte beats of one channel after the other


def test_a_transfer_of_one_beat_begins_every_cycle() -> None:
    def run(rows: int) -> int:
        dut = StoreUnit(2, 16, 8, 64, channel_bytes=1 << 20)
        memory = AxiMemory(np.zeros((2, 8192), np.uint8), writes=dut.axi, latency=6)
        bench = UnitBench(dut, memory, np.zeros(64, np.uint32), np.zeros(2048, np.uint8), 0, 0)
        op = Op.make("st.values", addr=1, hstride=64, heads=1, rows=rows, fmt=value_format(8).word,
                     pos=5, count=1, codes=0, codes1=0, codes2=0)  # fmt: skip
        return bench.run([op], lambda i: None)

    assert run(160) - run(80) == 40  # pairs of rows


@pytest.mark.parametrize("abort_at", [18, 26, 33, 50])
def test_abort_then_run_again(abort_at: int) -> None:
    data = np.zeros((2, 8192), np.uint8)
    dut = StoreUnit(2, 16, 8, 64, channel_bytes=1 << 20)
    memory = AxiMemory(data, writes=dut.axi, latency=9, stall=0.3, seed=abort_at)
    f = np.arange(1, 2049, dtype=np.uint32)
    bench = UnitBench(dut, memory, f, np.zeros(64, np.uint8), 0.1, 2)
    long = Op.make("st.vec", addr=1, src=0, n=400, count=2, mstride=16, sstride=400)
    short = Op.make("st.vec", addr=80, src=7, n=21, count=1, mstride=0, sstride=0)

    async def run(ctx: Any) -> None:
        bench._words = [*queue_words(long), *queue_words(short)]
        for cycle in range(abort_at + 1):
            ctx.set(dut.abort, int(cycle == abort_at))
            bench.step(ctx)
            await ctx.tick()
        ctx.set(dut.abort, 0)
        bench._words, bench._offered = queue_words(short), False
        done = 0
        for _ in range(900):
            done += bench.step(ctx)
            await ctx.tick()
        assert done == 1 and ctx.get(dut.idle) and memory.quiet

    simulate(dut, run)
    words = data[:, 80 * 64 :].copy().view(np.uint32)
    assert words[0, :12].tolist() == list(range(8, 20)), "channel 0"
    assert words[1, :9].tolist() == list(range(20, 29)), "channel 1"
    assert not words[0, 12:].any() and not words[1, 9:].any()


def test_a_window_holds_a_beat() -> None:
    with pytest.raises(ValueError, match="window must be at least a beat, not 32"):
        StorePipe(2, 64, 1 << 20, 8, 32)


SLOW = (1, 32, 4, 32)


def test_a_memory_that_mostly_pauses() -> None:
    compare(SLOW, 0.0, 6, slow=True)


BUGS = [
    (vector_store, "VectorStore", "job.count.eq(Mux(last, left, width))", "job.count.eq(width)"),
    (vector_store, "VectorStore", "following = row_at", "following = at"),
    (key_store, "KeyStore", "job.odd.eq(self._row[0])", "job.odd.eq(0)"),
    (key_store, "KeyStore", "with m.If(self._turn == last):", "with m.If(0):"),
    (key_store, "KeyStore", "left <= units - place", "left <= units"),
    (key_store, "KeyStore", "self._turn + self.start[: COUNT_BITS - 1]", "self._turn"),
    (value_store, "ValueStore", "(pairs + k + 1) >> 1", "(pairs + k) >> 1"),
    (value_store, "ValueStore", "job.odd.eq(left != 1)", "job.odd.eq(1)"),
    (value_store, "ValueStore", "place.eq(place + size)", "place.eq(place)"),
    (value_store, "ValueStore", "with m.If(begun):", "with m.If(1):"),
    (value_store, "ValueStore", "Mux(begun, behind, first.codes)", "first.codes"),
    (value_store, "ValueStore", "step & last & final", "step & last"),
    (value_store, "ValueStore", "Mux(walk.channel == 0, after, self._then)", "self._then"),
    (value_store, "ValueStore", "return then.number == ", "return after.number == "),
    (store_pipe, "StorePipe", "range(READ_LATENCY + 1)", "range(READ_LATENCY)"),
    (store_pipe, "StorePipe", "self._read(m, room != 0)", "self._read(m, 1)"),
    (store_pipe, "StorePipe", "orders.w_en.eq(done.w_en & begin)", "orders.w_en.eq(done.w_en)"),
    (store, "_Control", "& pipe.empty & self.written", "& pipe.empty"),
    (write_master, "WriteMaster", "self.idle.eq(quiet &", "self.idle.eq("),
    (arithmetic, "ShareWalk", "self.channel < self.extra", "0"),
]
MODULES = (key_store, store, store_pipe, value_store, vector_store, write_master)


def planted(module: Any, name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `old` by `new` in the source of class `name`, wherever the class is used."""
    source = textwrap.dedent(inspect.getsource(getattr(module, name)))
    assert old in source, old
    space = dict(vars(module))
    exec(compile(source.replace(old, new), f"<{name} with a bug>", "exec"), space)  # noqa: S102
    for user in MODULES:
        if hasattr(user, name):
            monkeypatch.setattr(user, name, space[name])


@pytest.mark.parametrize("module, name, old, new", one_in(4, BUGS), ids=lambda part: str(part)[:30])
def test_planted_bugs_are_caught(module: Any, name: str, old: str, new: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    planted(module, name, old, new, monkeypatch)
    if module is store:  # the unit looks its parts up in its own module
        rebuilt = dict(vars(store))
        exec(compile(inspect.getsource(store.StoreUnit), "<unit>", "exec"), rebuilt)  # noqa: S102
        monkeypatch.setitem(globals(), "StoreUnit", rebuilt["StoreUnit"])
    kinds = {vector_store: ("st.vec",), key_store: ("st.keys",), value_store: ("st.values",)}
    names = kinds.get(module, tuple(MAKERS))
    with pytest.raises(AssertionError):
        for seed, shape in enumerate(2 * ((1, 32, 4, 32), (2, 16, 8, 64), (3, 64, 16, 128))):
            compare(shape, 0.3 if seed else 0.6, seed, 9, names)
        compare(SLOW, 0.0, 6, 9, names, slow=True)
