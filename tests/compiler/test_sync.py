"""Semaphores: any legal interleaving of the units keeps every order that matters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from driver import Driver
from hypothesis import given, settings
from hypothesis import strategies as st
from random_quantized import random_model

from flightllm.compiler.build import build_program
from flightllm.compiler.ir import Access, Loop, Step
from flightllm.compiler.sync import synchronise
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config
from flightllm.spec.encoding import Op, Value, decode, encode
from flightllm.spec.errors import VerifyError
from flightllm.spec.isa import Unit, by_name

UNITS = (Unit.LD, Unit.MV, Unit.MISC)


def test_linked_loops_pass_a_token_in_every_iteration() -> None:
    made, read = Access("F", 0, 1, True, frozenset({"one"})), Access("F", 0, 1, False)
    first = Loop("one", Value(3), (Step(nop(Unit.MISC), (made,), signals=Unit.MV),))
    awaiting = Step(nop(Unit.MV), (read,), awaits=Unit.MISC, awaited=(read,))
    second = Loop("two", Value(3), (awaiting,))
    ops = synchronise([first, second])
    assert [(op.kind.name, {*op.wait}, {*op.release}) for op in ops if not op.kind.scalar] == [
        ("misc.nop", set(), {Unit.MV}), ("mv.nop", {Unit.MISC}, set()),
    ]  # fmt: skip
    apart = [dataclasses.replace(loop, body=(Step(loop.body[0].op, loop.body[0].accesses),))
             for loop in (first, second)]  # fmt: skip
    assert len(synchronise(apart)) == len(ops) + 2  # without the link: a nop a unit between them


def test_a_link_does_not_mix_with_other_tokens() -> None:
    """Planted: the first loop already passes tokens from MISC to MV."""
    cell = Access("F", 0, 1, True)
    steps = (Step(nop(Unit.MISC), (cell,), signals=Unit.MV), Step(nop(Unit.MV), (cell,)))
    with pytest.raises(AssertionError, match="tokens of two kinds"):
        synchronise([Loop("one", Value(3), steps)])


def nop(unit: Unit) -> Op:
    return Op(by_name(f"{unit.name.lower()}.nop"))


@st.composite
def blocks(draw: st.DrawFn, depth: int = 2) -> tuple[Step | Loop, ...]:
    """Random programs of steps that touch four cells of F, with loops."""
    out: list[Step | Loop] = []
    for number in range(draw(st.integers(1, 5))):
        if depth and draw(st.integers(0, 3)) == 0:
            body = draw(blocks(depth - 1))
            out.append(Loop(f"l{depth}{number}", Value(draw(st.integers(0, 3))), body))
            continue
        cells = draw(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=2))
        accesses = tuple(Access("F", at, at + 1, write) for at, write in cells)
        out.append(Step(nop(draw(st.sampled_from(UNITS))), accesses))
    return tuple(out)


def unroll(ops: list[Op]) -> list[int]:
    """Indices of non-scalar instructions in the order of dispatch."""
    out: list[int] = []

    def run(at: int, end: int) -> None:
        while at < end:
            name = ops[at].kind.name
            if name == "sys.loop":
                depth, stop = 1, at + 1
                while depth:
                    depth += {"sys.loop": 1, "sys.end": -1}.get(ops[stop].kind.name, 0)
                    stop += 1
                for _ in range(ops[at].operands["count"].imm):
                    run(at + 1, stop - 1)
                at = stop
            else:
                out.append(at)
                at += 1

    run(0, len(ops))
    return out


def interleave(ops: list[Op], seed: int) -> list[int]:
    """Positions in dispatch order, as a random legal schedule executes them."""
    rng = np.random.default_rng(seed)
    order = unroll(ops)
    queues = {u: [i for i, at in enumerate(order) if ops[at].kind.unit == u] for u in Unit}
    tokens: dict[tuple[Unit, Unit], int] = {}
    done: list[int] = []
    while any(queues.values()):
        ready = [
            u for u, q in queues.items()
            if q and all(tokens.get((w, u), 0) for w in ops[order[q[0]]].wait)
        ]  # fmt: skip
        assert ready, "deadlock"
        unit = ready[rng.integers(len(ready))]
        at = queues[unit].pop(0)
        op = ops[order[at]]
        for other in op.wait:
            tokens[other, unit] -= 1
        for other in op.release:
            tokens[unit, other] = tokens.get((unit, other), 0) + 1
        done.append(at)
    assert not any(tokens.values()), "tokens are left over"
    return done


def with_accesses(block: tuple[Step | Loop, ...]) -> list[tuple[Op, tuple[Access, ...]]]:
    """The steps in dispatch order."""
    out = []
    for item in block:
        if isinstance(item, Loop):
            for _ in range(item.count.imm):
                out += with_accesses(item.body)
        else:
            out.append((item.op, item.accesses))
    return out


def tagged(block: tuple[Step | Loop, ...]) -> tuple[Step | Loop, ...]:
    """The block with its own steps told from added nops by a flagged instruction."""
    out: list[Step | Loop] = []
    for item in block:
        if isinstance(item, Loop):
            out.append(dataclasses.replace(item, body=tagged(item.body)))
        else:
            out.append(dataclasses.replace(item, op=dataclasses.replace(item.op, rd=1)))
    return tuple(out)


def violations(block: tuple[Step | Loop, ...], ops: list[Op], seed: int) -> int:
    steps = with_accesses(block)
    order = unroll(ops)
    own = {at: n for n, at in enumerate(i for i, o in enumerate(order) if ops[o].rd == 1)}
    when = {own[at]: time for time, at in enumerate(interleave(ops, seed)) if at in own}
    return sum(
        when[i] > when[j]
        for i in range(len(steps))
        for j in range(i + 1, len(steps))
        if any(a.conflicts(b) for a in steps[i][1] for b in steps[j][1])
    )


@settings(max_examples=200)
@given(blocks(3), st.integers(0, 1000))
def test_random_programs_keep_their_order(block: tuple[Step | Loop, ...], seed: int) -> None:
    block = tagged(block)
    assert violations(block, synchronise(block), seed) == 0


def test_a_missing_wait_is_seen() -> None:
    write = Step(nop(Unit.LD), (Access("F", 0, 1, True),))
    read = Step(nop(Unit.MV), (Access("F", 0, 1, False),))
    block = tagged((write, read))
    bare = [dataclasses.replace(op, wait=frozenset(), release=frozenset())
            for op in synchronise(block)]  # fmt: skip
    assert any(violations(block, bare, seed) for seed in range(20))


@pytest.mark.parametrize("seed", range(3))
def test_any_interleaving_gives_the_same_logits(seed: int) -> None:
    model, config = random_model(2, window=9), load_config("tiny-2core")
    program = build_program(model, config, "random")
    ids = list(range(19))
    plain = Driver(FunctionalDevice(config), program)
    mixed = Driver(FunctionalDevice(config, seed=seed), program)
    assert np.array_equal(plain.prefill(ids), mixed.prefill(ids))
    assert np.array_equal(plain.decode(5, steps=3), mixed.decode(5, steps=3))


def test_a_dropped_semaphore_is_noticed() -> None:
    """Without the wait of the score loop on the cache's append, some interleaving differs."""
    model, config = random_model(2), load_config("tiny")
    program = build_program(model, config, "random")
    good = Driver(FunctionalDevice(config), program).prefill(list(range(9)))
    core = program.cores[0]
    ops = decode(core.words.tolist())
    for index, op in enumerate(ops):
        if op.kind.unit == Unit.LD and Unit.ST in op.wait:
            ops[index] = dataclasses.replace(op, wait=op.wait - {Unit.ST})
    for index, op in enumerate(ops):
        if op.kind.unit == Unit.ST and Unit.LD in op.release:
            ops[index] = dataclasses.replace(op, release=op.release - {Unit.LD})
    words = np.array(encode(ops), np.uint32)
    program.cores[0] = dataclasses.replace(core, words=words)
    try:
        bad = Driver(FunctionalDevice(config), program).prefill(list(range(9)))
    except VerifyError:
        return
    assert not np.array_equal(good, bad)
