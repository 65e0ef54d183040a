"""The port of half the width does what a master asks, whatever the clocks and the pauses."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from amaranth.sim import Simulator
from axi_memory import AxiMemory, ProtocolError
from long_lists import one_in

from flightllm.hw.memory import half_port
from flightllm.hw.memory.axi import channel_signature
from flightllm.hw.memory.read_master import ReadMaster
from flightllm.hw.memory.write_master import WriteMaster

BEAT, BYTES, BITS = 32, 1 << 13, 20
LIMIT = 2000
"""Of cycles; a right port takes 300."""
PERIODS = [(2.0, 1.0), (2.0, 0.4), (2.0, 1.3)]


class Masters(wiring.Component):
    """A core's masters in front of the port."""

    def __init__(self, kind: Any) -> None:
        self.read, self.write = ReadMaster(BEAT, BITS, 64, 16), WriteMaster(BEAT, BITS)
        self.port = kind(BEAT, BITS)
        super().__init__({"narrow": Out(channel_signature(BEAT // 2, BITS))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains += ClockDomain("sync"), ClockDomain("fast")
        m.submodules.read, m.submodules.write = self.read, self.write
        m.submodules.port = self.port
        for part in (self.read.axi, self.write.axi):
            for name, member in part.signature.members.items():
                inner, outer = getattr(part, name), getattr(self.port.wide, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        wiring.connect(m, self.port.narrow, wiring.flipped(self.narrow))
        return m


def transfers(rng: Any, count: int = 8) -> list[tuple[int, int]]:
    """(address, beats): anywhere in the lower half."""
    out = []
    for _ in range(count):
        beats = int(rng.integers(1, 40))
        out.append((int(rng.integers(0, BYTES // 2 // BEAT - beats)) * BEAT, beats))
    return out


def run(periods: tuple[float, float], stall: float, seed: int, fail: tuple[int, ...] = (),
        kind: Any = None) -> Masters:  # fmt: skip
    """Copy pieces of the lower half of memory out, and random bytes into the upper half."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (1, BYTES), np.uint8)
    want, asked = data.copy(), transfers(rng)
    dut = Masters(kind or half_port.HalfPort)
    memory = AxiMemory(data, [dut.narrow], [dut.narrow], stall=stall, seed=seed, fail=fail,
                       patient=True)  # fmt: skip
    written = [(BYTES // 2 + address, beats) for address, beats in transfers(rng)]
    bodies = []
    for address, beats in written:
        for k in range(beats):
            body = rng.integers(0, 256, BEAT, np.uint8)
            strobe = rng.random(BEAT) < 0.7
            at = address + k * BEAT
            want[0, at : at + BEAT][strobe] = body[strobe]
            bodies.append((body, strobe))
    got: list[int] = []

    async def core(ctx: Any) -> None:
        jobs = [(dut.read.i, asked), (dut.write.i, written)]
        beats = list(bodies)
        expected = sum(count for _, count in asked)
        ctx.set(dut.read.weights.ready, 1)
        for _ in range(LIMIT):
            for port, left in jobs:
                ctx.set(port.valid, bool(left))
                if left:
                    ctx.set(port.payload.address, left[0][0])
                    ctx.set(port.payload.beats, left[0][1])
            ctx.set(dut.write.data.valid, bool(beats))
            if beats:
                body, strobe = beats[0]
                ctx.set(dut.write.data.payload.bytes, int.from_bytes(body.tobytes(), "little"))
                bits = int.from_bytes(np.packbits(strobe, bitorder="little").tobytes(), "little")
                ctx.set(dut.write.data.payload.strobe, bits)
            for port, left in jobs:
                if left and ctx.get(port.ready):
                    left.pop(0)
            if beats and ctx.get(dut.write.data.ready):
                beats.pop(0)
            if ctx.get(dut.read.weights.valid):
                got.append(ctx.get(dut.read.weights.payload))
            await ctx.tick("sync")
            idle = ctx.get(dut.read.idle) and ctx.get(dut.write.idle)
            if idle and not beats and not any(left for _, left in jobs) and len(got) == expected:
                return
        raise AssertionError("hangs")

    async def answer(ctx: Any) -> None:
        while True:
            memory.step(ctx)
            await ctx.tick("fast")

    first = list(asked)
    simulator = Simulator(dut)
    for domain, period in zip(("sync", "fast"), periods):
        simulator.add_clock(period * 1e-6, domain=domain)
    simulator.add_testbench(core)
    simulator.add_testbench(answer, background=True)
    simulator.run()
    assert np.array_equal(data, want), "memory differs"
    read = np.frombuffer(b"".join(v.to_bytes(BEAT, "little") for v in got), np.uint8)
    parts = [want[0, a : a + n * BEAT] for a, n in first]
    assert np.array_equal(read, np.concatenate(parts)), "what was read differs"
    dut.bursts = [beats for _, _, beats in memory.bursts]
    return dut


@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize("periods", PERIODS)
def test_everything_arrives(periods: tuple[float, float], stall: float) -> None:
    dut = run(periods, stall, 3)
    assert max(dut.bursts) == 16


MUTATIONS = [
    ("HALF_BURST * self._beat, 0)", "HALF_BURST * self._beat // 2, 0)"),
    ("parts.w_data.eq(second | ~long)", "parts.w_data.eq(second)"),
    ("last | (place == HALF_BURST - 1)", "last"),
    ("Mux(long, HALF_BURST, beats)", "beats"),
    ("narrow.rready.eq(~second | fifo.w_rdy)", "narrow.rready.eq(1)"),
    ("data_in.word_select(second,", "data_in.word_select(~second,"),
    ("fifo.w_en.eq(taken & parts.r_data)", "fifo.w_en.eq(taken)"),
]


@pytest.mark.parametrize("old, new", one_in(3, MUTATIONS))
def test_planted_bugs_are_caught(old: str, new: str) -> None:
    text = textwrap.dedent(inspect.getsource(half_port.HalfPort))
    assert text.count(old) == 1
    space = dict(vars(half_port))
    exec(text.replace(old, new), space)
    with pytest.raises((AssertionError, ProtocolError)):
        for k, periods in enumerate(PERIODS):
            run(periods, 0.3 * (k != 2), 3 + k, kind=space["HalfPort"])
