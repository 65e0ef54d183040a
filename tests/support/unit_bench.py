"""Runs one unit's instructions in the Amaranth simulator, with buffers and memory in Python.

`UnitBench` feeds the queue, answers semaphores, buffer ports and AXI, all with random pauses, and
calls back at every `done`, so that a test can hold the unit to "done when the last result is
visible".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from amaranth.sim import Simulator
from axi_memory import AxiMemory

from flightllm.hw.memory.buffers import READ_LATENCY
from flightllm.sim.functional import load_store
from flightllm.sim.functional.core import CoreState
from flightllm.spec.encoding import Op, Value, encode

__all__ = ["BufferModel", "UnitBench", "execute", "queue_words"]


def queue_words(op: Op) -> list[int]:
    """The words a unit's queue gets for `op`, whose operands use no register."""
    words = encode([op])[:1]
    for operand in op.kind.operands:
        value = op.operands[operand.name]
        words.append((value.imm if isinstance(value, Value) else value) & 0xFFFFFFFF)
    return words


def execute(core: CoreState, op: Op) -> None:
    """Execute a LD or ST instruction on the functional simulator's state."""
    values = [op.operands[operand.name] for operand in op.kind.operands]
    handler = getattr(load_store, op.kind.name.replace(".", "_"))
    handler(core, op.flags, *(value.imm for value in values))


class BufferModel:
    """F or A behind any of its ports.

    Parameters
    ----------
    data : unsigned elements, read and written in place.
    """

    def __init__(self, data: np.ndarray, stall: float, rng: Any) -> None:
        self.data, self.stall, self.rng = data, stall, rng
        self.cycle = 0
        self._answers: list[tuple[int, Any, np.ndarray]] = []

    def step(self, ctx: Any, reads: Sequence[Any], writes: Sequence[Any]) -> None:
        """One cycle, before its clock edge."""
        for due, port, values in self._answers:
            if due == self.cycle:
                for k, value in enumerate(values.tolist()):
                    ctx.set(port.data[k], value)
            elif due == self.cycle - 1:  # nothing may rely on what was there a cycle later
                for k in range(len(port.data)):
                    ctx.set(port.data[k], 0xA5)
        self._answers = [entry for entry in self._answers if entry[0] >= self.cycle]
        for port in reads:
            ready = self.rng.random() >= self.stall
            ctx.set(port.ready, int(ready))
            if ready and ctx.get(port.valid):
                at, lanes = ctx.get(port.addr), len(port.data)
                count = ctx.get(port.count) if hasattr(port, "count") else lanes
                assert at < len(self.data) and count <= lanes, f"read at {at}"
                values = np.zeros(lanes, self.data.dtype)
                part = self.data[at : at + count]
                values[: len(part)] = part
                self._answers.append((self.cycle + READ_LATENCY, port, values))
        for port in writes:
            ready = self.rng.random() >= self.stall
            ctx.set(port.ready, int(ready))
            if ready and ctx.get(port.valid):
                at, count = ctx.get(port.addr), ctx.get(port.count)
                assert 0 < count <= len(port.data) and at + count <= len(self.data), f"write {at}"
                self.data[at : at + count] = [ctx.get(port.data[k]) for k in range(count)]
        self.cycle += 1


class UnitBench:
    """One run of instructions.

    Parameters
    ----------
    dut : LoadUnit or StoreUnit. memory : behind its channels.
    f, a : contents of the buffers; `a` None where the unit has no port of A.
    stall : chance of every handshake to wait in a cycle.
    """

    def __init__(self, dut: Any, memory: AxiMemory, f: np.ndarray, a: np.ndarray | None,
                 stall: float, seed: int) -> None:  # fmt: skip
        self.dut, self.memory, self.stall = dut, memory, stall
        self.rng = np.random.default_rng(seed)
        self.f = BufferModel(f, stall, self.rng)
        self.a = None if a is None else BufferModel(a, stall, self.rng)
        self.weights: list[list[int]] = [[] for _ in getattr(dut, "weights", ())]
        self.drain_weights = True
        self._words: list[int] = []
        self._offered = False

    def step(self, ctx: Any) -> bool:
        """One cycle before its clock edge; whether an instruction was done."""
        dut = self.dut
        if not self._offered and self._words and self.rng.random() >= self.stall:
            self._offered = True
            ctx.set(dut.queue.payload, self._words[0])
        ctx.set(dut.queue.valid, int(self._offered))
        ctx.set(dut.semaphores.granted, 0)
        if ctx.get(dut.semaphores.waiting):
            ctx.set(dut.semaphores.granted, int(self.rng.random() >= self.stall))
        self.memory.step(ctx)
        self.f.step(ctx, [dut.f_read], [dut.f_write] if hasattr(dut, "f_write") else [])
        if self.a is not None:
            self.a.step(ctx, [dut.a_read], [])
        for port, got in zip(getattr(dut, "weights", ()), self.weights):
            ready = self.drain_weights and self.rng.random() >= self.stall
            ctx.set(port.ready, int(ready))
            if ready and ctx.get(port.valid):
                got.append(ctx.get(port.payload))
        if self._offered and ctx.get(dut.queue.ready):
            self._words.pop(0)
            self._offered = False
        return bool(ctx.get(dut.semaphores.done))

    def run(self, ops: Sequence[Op], done: Callable[[int], None], limit: int = 40000) -> int:
        """Run `ops`; `done(i)` is called when instruction i is done. Returns the cycles."""
        self._words = [word for op in ops for word in queue_words(op)]
        count = 0

        async def bench(ctx: Any) -> None:
            nonlocal count
            while count < len(ops) or not ctx.get(self.dut.idle):
                if self.step(ctx):
                    done(count)
                    count += 1
                await ctx.tick()
                assert self.memory.cycle < limit, f"hangs at instruction {count}"
            while any(ctx.get(port.valid) for port in getattr(self.dut, "weights", ())):
                self.step(ctx)
                await ctx.tick()
            assert not ctx.get(self.dut.error)

        simulate(self.dut, bench)
        assert count == len(ops)
        return self.memory.cycle


def simulate(dut: Any, bench: Any) -> None:
    """Run `bench` with a clock."""
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
