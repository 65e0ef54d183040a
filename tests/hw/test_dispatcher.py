"""The dispatcher hands each unit the words that the functional simulator's dispatcher resolves."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator
from random_quantized import random_model

from flightllm.compiler.build import build_program
from flightllm.hw.dispatcher import Dispatcher
from flightllm.sim.functional.dispatch import Dispatcher as Reference
from flightllm.spec.config import load_config
from flightllm.spec.image import CoreCode
from flightllm.spec.isa import UNITS, Register


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
    code: CoreCode, entry: str, registers: dict[int, int], stall: float, seed: int = 0
) -> tuple[list[list[int]], int]:
    """Words a unit and the cycles they took, by the RTL, with queues ready at random."""
    dut = Dispatcher(4096, 4096)
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
            ready = rng.random(len(queues)) >= stall
            for queue, go in zip(queues, ready):
                ctx.set(queue.ready, int(go))
            seen = [(ctx.get(queue.valid), ctx.get(queue.payload)) for queue in queues]
            await ctx.tick()
            cycles += 1
            for unit, ((valid, payload), go) in enumerate(zip(seen, ready)):
                if valid and go:
                    out[unit].append(payload)
        assert not ctx.get(dut.error)

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


def test_a_foreign_word_raises_the_error() -> None:
    code = CoreCode(np.array([0xF], np.uint32), np.zeros(1, np.uint32), {"prefill": 0})
    with pytest.raises(AssertionError):
        dispatched_words(code, "prefill", {}, 0.0)
