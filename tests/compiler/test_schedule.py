"""The decode program asks for the first matrix of a token before it knows the token."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.models.integer import IntegerModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config
from flightllm.spec.encoding import Op, Value, decode, encode
from flightllm.spec.errors import VerifyError
from flightllm.spec.image import CoreCode, Program

PROMPT = [3, 1, 4]


def _ops(code: CoreCode) -> list[Op]:
    return list(decode([int(word) for word in code.words]))


def _asks(ops: list[Op]) -> list[int]:
    """Places of loops around one LD.stream, and scalars, alone."""
    out = []
    for place, op in enumerate(ops):
        if op.kind.name == "sys.loop":
            names = [other.kind.name for other in ops[place + 1 : place + 6]]
            body = names[: names.index("sys.end")] if "sys.end" in names else []
            if [name for name in body if name != "sys.param"] == ["ld.stream"]:
                out.append(place)
    return out


def _decode_only(code: CoreCode) -> list[Op]:
    """The decode program, which lies behind that of prefill."""
    ops, words = _ops(code), 0
    for place, op in enumerate(ops):
        if words == code.entries["decode"]:
            return ops[place:]
        words += op.kind.words
    raise AssertionError("no decode program")


def _with(program: Program, ops: list[Op]) -> Program:
    """The program of one core with other instructions."""
    words = np.array(encode(ops), np.uint32)
    return dataclasses.replace(
        program, cores=[dataclasses.replace(program.cores[0], words=words)]
    )  # fmt: skip


def _greedy(program: Program, steps: int, seed: int | None = None) -> list[int]:
    driver = Driver(FunctionalDevice(program.config, seed=seed), program)
    driver.prefill(PROMPT)
    first = driver.top(0)
    driver.decode(first, steps=steps)
    return [first, *(driver.top(step) for step in range(steps))]


@pytest.mark.parametrize("name", ["llama", "opt", "table4"])
def test_a_token_s_first_matrix_is_asked_for_before_its_embedding(name: str) -> None:
    program = build_program(random_model(3, **VARIANTS[name]), load_config("tiny"), "m")
    ops = _decode_only(program.cores[0])
    first, layer, following = _asks(ops)
    names = [op.kind.name for op in ops]
    assert first < names.index("ld.vec") and layer < names.index("mv.linear")
    assert following > max(i for i, n in enumerate(names) if n == "st.vec")
    assert all(ops[place].operands["count"].reg for place in (first, layer, following))
    assert len(_asks(_ops(program.cores[0]))) == 3  # none in prefill


def _timed(program: Program, steps: int) -> int | None:
    """Cycles of a decode run without weights."""
    pytest.importorskip("numba")
    from flightllm.sim.cycle import CycleDevice

    driver = Driver(CycleDevice(program.config), dataclasses.replace(program, image=None))
    driver.decode(1, steps=steps)
    return driver.results[-1].cycles


def test_no_matrix_is_left_in_time_either() -> None:
    program = build_program(random_model(3, **VARIANTS["llama"]), load_config("tiny"), "m")
    cycles = [_timed(program, steps) or 0 for steps in range(4)]
    assert cycles == sorted(cycles) and cycles[0] > 0


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("name", "board"), [
    ("llama", "tiny"), ("table4", "tiny"), ("opt", "tiny-2core"),
    ("llama-mqa-w3-kv4", "tiny-2core"),  # a core of which has no rows of K
])  # fmt: skip
def test_as_many_matrices_as_steps_are_asked_for(
    name: str, board: str, steps: int, seed: int | None
) -> None:
    model = random_model(3, **VARIANTS[name])
    ids = _greedy(build_program(model, load_config(board), "m"), steps, seed)
    assert ids == IntegerModel(model).greedy(PROMPT, steps + 1)


def test_vectors_overtake_a_first_matrix_that_the_weight_fifo_cannot_hold() -> None:
    config = dataclasses.replace(load_config("tiny"), prefetch_bytes=1024)
    model = random_model(3, **{**VARIANTS["llama"], "bits": 8})
    program = build_program(model, config, "m")
    assert _greedy(program, 3, 1) == IntegerModel(model).greedy(PROMPT, 4)


@pytest.mark.parametrize(("which", "count", "message"), [
    (2, 1, "halt with 1 unused matrices"),  # also behind the last token
    (2, 0, "the matrix in the weight FIFO has 64"),  # not for the second token
    (0, 0, "the matrix in the weight FIFO has 64"),  # not for the first token
    (1, 1, "the matrix in the weight FIFO has 32"),  # again in the first layer
])  # fmt: skip
@pytest.mark.parametrize("timed", [False, True])
def test_a_wrong_guard_is_seen(which: int, count: int, message: str, timed: bool) -> None:
    """Planted: one of the three loops runs at other times; both executors refuse it."""
    program = build_program(random_model(3, **VARIANTS["llama"]), load_config("tiny"), "m")
    ops = _ops(program.cores[0])
    place = _asks(ops)[which]
    operands = {**ops[place].operands, "count": Value(count)}
    ops[place] = dataclasses.replace(ops[place], operands=operands)
    broken = _with(program, ops)
    with pytest.raises(VerifyError, match=message):
        if timed:
            _timed(broken, 2)
        else:
            _greedy(broken, 2)
