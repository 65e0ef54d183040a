"""The dispatcher hands each unit the words that the functional simulator's dispatcher resolves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from random_quantized import random_model
from source_mutation import Mutation, mutated

from flightllm.compiler.build import build_program
from flightllm.hw import dispatcher
from flightllm.hw.dispatcher import Dispatcher
from flightllm.sim.functional.dispatch import Dispatcher as Reference
from flightllm.spec.config import load_config
from flightllm.spec.encoding import Op, Value, encode
from flightllm.spec.image import CoreCode
from flightllm.spec.isa import UNITS, Register
from flightllm.spec.registers import ErrorCode


def expected_words(code: CoreCode, entry: str, registers: dict[int, int]) -> list[list[int]]:
    """Words a unit, by the functional simulator."""
    reference = Reference(code, "core 0")
    reference.start(entry, registers)
    out: list[list[int]] = [[] for _ in UNITS]
    while True:
        step = reference.peek()
        step, values = reference.take()
        words = [int(code.words[step.address])]
        for value in values:
            bits = np.float32(value).view(np.uint32) if isinstance(value, np.float32) else value
            words.append(int(bits) & 0xFFFFFFFF)
        out[step.unit] += words
        if step.kind.name == "sys.halt":
            return out


def dispatched_words(
    code: CoreCode, entry: str, registers: dict[int, int], stall: float, seed: int = 0,
    kind: Any = Dispatcher, patience: int = 60_000,
) -> tuple[list[list[int]], int]:  # fmt: skip
    """Words a unit and the cycles they took, by the RTL, with queues ready at random."""
    dut = kind(4096, 4096)
    out: list[list[int]] = [[] for _ in UNITS]
    cycles = 0

    async def bench(ctx) -> None:
        nonlocal cycles
        for port, words in ((dut.program, code.words), (dut.params, code.params)):
            ctx.set(port.enable, 1)
            for address, word in enumerate(words):
                ctx.set(port.address, address)
                ctx.set(port.data, int(word))
                await ctx.tick()
            ctx.set(port.enable, 0)
        for name in (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS):
            ctx.set(getattr(dut, name.name.lower()), registers.get(name, 0))
        ctx.set(dut.entry, code.entries[entry])
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        rng = np.random.default_rng(seed)
        queues = [getattr(dut, f"queue{unit}") for unit in UNITS]
        while ctx.get(dut.running):
            assert cycles < patience, "hangs"
            ready = rng.random(len(queues)) >= stall
            for queue, go in zip(queues, ready):
                ctx.set(queue.ready, int(go))
            seen = [(ctx.get(queue.valid), ctx.get(queue.payload)) for queue in queues]
            await ctx.tick()
            cycles += 1
            for unit, ((valid, payload), go) in enumerate(zip(seen, ready)):
                if valid and go:
                    out[unit].append(payload)
        assert not ctx.get(dut.error), (ErrorCode(ctx.get(dut.code)).name, ctx.get(dut.address))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return out, cycles


@pytest.mark.parametrize("entry, stall", [("decode", 0.0), ("decode", 0.5), ("prefill", 0.2)])
def test_same_words_as_the_functional_dispatcher(entry: str, stall: float) -> None:
    program = build_program(random_model(1, window=9), load_config("tiny"), "m")
    code = program.cores[0]
    registers = {Register.POS: 21, Register.NTOK: 5 if entry == "prefill" else 1,
                 Register.STEPS: 2, Register.LOGITS: 1}  # fmt: skip
    words, cycles = dispatched_words(code, entry, registers, stall)
    wanted = expected_words(code, entry, registers)
    assert words == wanted
    if not stall:  # a word a cycle, and a few for each scalar instruction
        assert cycles < 2.2 * sum(len(unit) for unit in wanted)


def test_loops_of_zero_are_skipped() -> None:
    program = build_program(random_model(1), load_config("tiny"), "m")
    code = program.cores[0]
    registers = {Register.POS: 3, Register.NTOK: 4, Register.STEPS: 0, Register.LOGITS: 0}
    for entry in ("prefill", "decode"):
        words, _ = dispatched_words(code, entry, registers, 0.0)
        assert words == expected_words(code, entry, registers)


def scalar_program(seed: int) -> CoreCode:
    """Random scalar instructions and loops whose results reach a unit's operands."""
    rng = np.random.default_rng(seed)
    ops: list[Op] = []

    def value() -> Value:
        return Value(int(rng.integers(-40, 40)), int(rng.integers(0, 12)))

    def body(depth: int) -> None:
        for _ in range(int(rng.integers(2, 5))):
            name = str(rng.choice(["add", "sub", "min", "max", "shr", "mul", "param"]))
            rd = int(rng.integers(0, 12))
            if name == "param":
                ops.append(Op.make("sys.param", rd=rd, index=Value(int(rng.integers(8)))))
            else:
                b = Value(int(rng.integers(6))) if name == "shr" else value()
                ops.append(Op.make(f"sys.{name}", rd=rd, a=value(), b=b))
            if depth < 2 and rng.random() < 0.5:
                ops.append(Op.make("sys.loop", count=Value(int(rng.integers(-1, 3)))))
                body(depth + 1)
                ops.append(Op.make("sys.end"))
            ops.append(Op.make("sys.gather", addr=value(), n=value(), n1=value(), stride=value()))

    body(0)
    ops.append(Op.make("sys.halt"))
    params = rng.integers(0, 1 << 32, 8, dtype=np.uint32)
    return CoreCode(np.array(encode(ops), np.uint32), params, {"main": 0})


def scalars_agree(seed: int, kind: Any = Dispatcher) -> None:
    code = scalar_program(seed)
    registers = {Register.POS: 3, Register.NTOK: 2, Register.STEPS: 1, Register.LOGITS: 7}
    wanted = expected_words(code, "main", registers)
    patience = 500 + 10 * sum(map(len, wanted))
    stall = 0.2 * (seed % 3)
    words, _ = dispatched_words(code, "main", registers, stall, seed, kind, patience)
    assert words == wanted


@pytest.mark.parametrize("seed", range(4))
def test_scalars_and_nested_loops(seed: int) -> None:
    scalars_agree(seed)


FILE = "dispatcher.py"
MUTATIONS = [
    Mutation(FILE, "Mux(a < b, a, b)", "Mux(self.operands[0] < self.operands[1], a, b)",
             "the minimum is without a sign"),
    Mutation(FILE, "a >> self.operands[1][:5]", "self.operands[0] >> self.operands[1][:5]",
             "shifts bring in zeros"),
    Mutation(FILE, "self._set(m, self.param.data)", "self._set(m, self.operands[0])",
             "a parameter's number instead of its word"),
    Mutation(FILE, "with m.If(count <= 0):", "with m.If(count == 0):",
             "a loop of a negative count runs"),
    Mutation(FILE, "self.remaining[top] == 1", "self.remaining[top] == 2",
             "loops end a turn early"),
    Mutation(FILE, "self.skipping.eq(1)", "self.skipping.eq(0)", "an empty loop runs once"),
    Mutation(FILE, "m.d.sync += skipping.eq(skipping + 1)", "pass",
             "a skipped loop ends at the first inner end"),
    Mutation(FILE, "with m.If(~live | self.sent):", "with m.If(1):",
             "a word is dropped where its queue is full"),
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.error)
def test_planted_bugs_are_caught(mutation: Mutation) -> None:
    kind = mutated(mutation, dispatcher.__name__).Dispatcher
    with pytest.raises(AssertionError):
        for seed in range(6):
            scalars_agree(seed, kind)


FAULTS = {
    "INSTRUCTION": ([0xF], 0),
    "LOOP": (encode([Op.make("sys.loop", count=1)] * 7), 12),
    "PROGRAM": (encode([Op.make("ld.nop"), Op.make("sys.param", rd=1, index=4096)]), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_says_why_and_where(name: str) -> None:
    words, at = FAULTS[name]
    code = CoreCode(np.array(words, np.uint32), np.zeros(1, np.uint32), {"main": 0})
    with pytest.raises(AssertionError, match=rf"\('{name}', {at}\)"):
        dispatched_words(code, "main", {}, 0.0)
