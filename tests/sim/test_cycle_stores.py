"""sim.cycle: ST's reads of F and A, who goes before them, and the room in its pipeline."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.spec import timing
from flightllm.spec.config import load_config
from flightllm.spec.dram import dram_timing
from flightllm.spec.formats import row_shares
from flightllm.spec.isa import Register
from flightllm.spec.kvcache import key_format, value_format

pytest.importorskip("numba")


def _history(*runs):
    return np.array([(len(runs), 0.0), *runs])


def test_cycles_are_spent_between_the_runs_of_others():
    from flightllm.sim.cycle.kernels import spend

    runs = _history((10, 14), (14, 15), (20, 30))
    assert spend(2.0, 8.0, runs, 0) == (10.0, 0)
    assert spend(2.0, 9.0, runs, 0) == (16.0, 2)
    assert spend(12.0, 1.0, runs, 0) == (16.0, 2)
    assert spend(12.0, 6.0, runs, 0) == (31.0, 3)
    assert spend(40.0, 6.0, runs, 3) == (46.0, 3)


def test_each_store_s_walk():
    from flightllm.sim.cycle.stores import A, F, store_jobs

    config = load_config("tiny")
    channels, beat, lanes = config.channels[0], config.beat_bytes, config.sfu_lanes
    keys = {"addr": 0, "hstride": 64, "heads": 2, "fmt": key_format(32, 8).word, "pos": 0,
            "count": 3, "start": 0}  # fmt: skip
    made = store_jobs("st.keys", keys, channels, beat, lanes)
    assert made.ports.tolist() == 6 * [F, F, A] and made.sizes.tolist() == 6 * [1, 1, 4]
    assert made.leads.nonzero()[0].tolist() == [0, 6, 12]  # a cycle a token
    values = {"addr": 0, "hstride": 64, "heads": 2, "rows": 2, "fmt": value_format(8).word,
              "pos": 0, "count": 2}  # fmt: skip
    made = store_jobs("st.values", values, channels, beat, lanes)
    assert set(made.ports) == {A} and set(made.channels) == {0}
    # The second channel has no rows, which takes a cycle behind each token.
    assert made.leads.tolist() == [1, 0, 2, 0] and made.behind == 3
    made = store_jobs("st.values", values | {"rows": 6, "count": 1}, channels, beat, lanes)
    assert made.channels.tolist() == [0, 0, 0, 0, 1, 1]  # all heads of a channel
    assert made.addresses.tolist() == [0, 64, 4096, 4160, 0, 4096]
    vectors = {"addr": 0, "mstride": 1, "n": 42, "count": 1}
    made = store_jobs("st.vec", vectors, channels, beat, 2)
    assert (made.reads.tolist(), made.sizes.tolist(), made.parts) == ([11, 10], [6, 5], 2)


def _walked(v, channels, beat):
    """(cycle, channel, beat of memory, address in A) of each job of the gateware's walk of
    ST.values, and the cycle of its end."""
    from amaranth.hdl import Module
    from unit_bench import simulate

    from flightllm.hw.memory.arithmetic import Arithmetic
    from flightllm.hw.memory.store_job import UNIT
    from flightllm.hw.memory.value_store import ValueStore

    m = Module()
    m.submodules.walk = walk = ValueStore(channels, beat, 4)
    m.submodules.math = math = Arithmetic(channels)
    m.d.comb += [getattr(math, name).eq(getattr(walk.math, name))
                 for name in ("start", "divide", "a", "b")]  # fmt: skip
    m.d.comb += [getattr(walk.math, name).eq(getattr(math, name))
                 for name in ("done", "product", "quotient", "remainder")]  # fmt: skip
    jobs, ends = [], []

    async def run(ctx):
        for name, value in v.items():
            ctx.set(getattr(walk, name), value)
        ctx.set(walk.jobs.ready, 1)
        for cycle in range(1000):
            ctx.set(walk.go, cycle == 0)
            job = walk.jobs.payload
            if ctx.get(walk.jobs.valid):
                at = ctx.get(job.address) * UNIT // beat
                jobs.append((cycle, ctx.get(job.channel), at, ctx.get(job.source)))
            if ctx.get(walk.done):
                ends.append(cycle)
                return
            await ctx.tick()

    simulate(m, run)
    return jobs, ends[0]


@pytest.mark.parametrize("channels, heads, rows", [
    (1, 3, 7), (2, 1, 8), (2, 2, 25), (3, 3, 2), (4, 2, 10), (5, 1, 6), (2, 5, 40), (3, 3, 62),
    (4, 33, 2),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("bits", [4, 8])
def test_the_walk_over_values_is_the_gateware_s(channels, heads, rows, bits):
    from flightllm.sim.cycle.stores import store_jobs

    pytest.importorskip("amaranth")
    beat, count = 32, 3
    values = {"addr": 3, "hstride": 70, "heads": heads, "rows": rows, "count": count, "pos": 30,
              "fmt": value_format(bits).word, "codes": 5, "codes1": 200, "codes2": 60}  # fmt: skip
    jobs, end = _walked(values, channels, beat)
    made = store_jobs("st.values", values, channels, beat, 4)
    cycles, owners, beats, sources = np.array(jobs).T
    shares = row_shares(rows, channels)
    together = timing.heads_together(-(-shares[0][1] // 2))
    assert sources.tolist() == [
        5 + token * 200 + head * 60 + row
        for token in range(count) for first in range(0, heads, together) for a, b in shares
        for head in range(first, min(heads, first + together)) for row in range(a, b, 2)
    ]  # fmt: skip
    assert owners.tolist() == made.channels.tolist()
    assert beats.tolist() == (made.addresses // beat).tolist()
    assert (np.diff(cycles) - 1).tolist() == made.leads[1:].tolist()
    assert end - cycles[-1] + 1 == made.behind  # ST waits from the cycle behind the end


def test_a_beat_is_written_from_its_first_byte_on():
    """Strobes say which of its bytes: memory sees all of the beat, from where it begins."""
    from flightllm.sim.cycle import PlainMemory
    from flightllm.sim.cycle.memory import ChannelMemory
    from flightllm.sim.cycle.stores import StoreJobs

    config = load_config("u280")
    beat, reads = config.beat_bytes, SimpleNamespace(before=4 * [_history()], seen=np.zeros(4, int))

    def written(*addresses):
        """The rows and the state of a channel behind a beat at each of these."""
        ones, zeros = np.ones(len(addresses), np.int64), np.zeros(len(addresses), np.int64)
        memory = ChannelMemory(config, 0, dram_timing(config), PlainMemory(0))
        jobs = StoreJobs(zeros, ones, ones, zeros, np.array(addresses), ones, 1, 2)
        walk, handed = np.array([-1.0, -1e9, 0, 0, 0]), np.full(timing.STORE_BEATS, -1e9)
        assert memory.write(jobs, 0, walk, handed, reads, np.inf) == len(addresses)
        return memory.rows[0].tolist(), memory.states[0].tolist()

    assert written(beat + 30, 30, 2046) == written(beat, 0, 2048 - beat)


def _stores(program, **options):
    """(name, cycles) of each store of a prompt's tile."""
    from flightllm.sim.cycle import CycleDevice, PlainMemory

    records = []
    device = CycleDevice(program.config, trace=records.append, **options,
                         memory=PlainMemory(100))  # fmt: skip
    device.load(program)
    device.run("prefill", {
        Register.POS: 0, Register.NTOK: 16, Register.STEPS: 0, Register.LOGITS: 1,
    })  # fmt: skip
    return [(r.name, r.end - r.start) for r in records if r.unit == "st"]


@pytest.fixture(scope="module")
def program():
    made = build_program(random_model(3, **VARIANTS["llama"]), load_config("tiny"), "random")
    return dataclasses.replace(made, image=None)


def test_misc_s_reads_of_f_hold_up_keys_alone(program, monkeypatch):
    held = _stores(program)
    monkeypatch.setattr(timing, "misc_reads", lambda *_: [])
    free = _stores(program)
    slower = {name for (name, there), (_, here) in zip(held, free) if there > here}
    assert slower == {"st.keys"} and all(a[1] >= b[1] for a, b in zip(held, free))


def test_the_engine_s_windows_hold_up_codes(program, monkeypatch):
    from flightllm.sim.cycle import kernels

    held = _stores(program)
    note = kernels.note

    def more(runs, begin, end):  # the engine would read for 3000 cycles at each matrix
        note(runs, begin, end + 3000)

    monkeypatch.setattr(kernels, "note", more)
    later = _stores(program)
    slower = {name for (name, there), (_, here) in zip(held, later) if there < here}
    assert "st.keys" in slower and "st.vec" not in slower


def test_beats_wait_for_room(program):
    from flightllm.sim.cycle import kernels

    def handed(late):
        """Cycle of the last beat of 64 reads, one a cycle, to one channel that answers late."""
        n, empty = 64, _history()
        jobs = [np.zeros(n, np.int64), np.ones(n, np.int64), *(np.zeros(n, np.int64),) * 3,
                np.ones(n, np.int64)]  # fmt: skip
        walk = np.array([-1.0, -1e9, 0, 0, 0])
        dram = tuple(np.zeros(shape) for shape in ((1, 1), (1, 1), (1, 1), (1, 5)))
        kernels.store(np.zeros(14), late, 1.0, 16, tuple(jobs), 1, 0, np.inf, walk,
                      np.full(timing.STORE_BEATS, -1e9), (empty, empty), np.zeros(3, np.int64),
                      np.full((1, timing.WRITES), -1e9), np.zeros(1, np.int64), dram,
                      np.full(1, -1e9))  # fmt: skip
        return walk[kernels.READ_AT], walk[kernels.HANDED]

    assert handed(10.0) == (63, 63 + timing.STORE_PIPE + timing.TRANSFER)
    taken, sent = handed(500.0)  # the 33rd burst waits for the first response
    assert taken > 500 and sent - taken == timing.STORE_PIPE + timing.TRANSFER
