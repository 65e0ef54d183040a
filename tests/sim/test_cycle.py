"""sim.cycle: bits as the functional simulator's, and times that follow the table of timing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.spec.config import load_config
from flightllm.spec.device import memory_sha256

pytest.importorskip("numba")

IDS = np.random.default_rng(1).integers(0, 96, 37).tolist()


def _program(name, board="tiny"):
    config = load_config(board) if isinstance(board, str) else board
    return build_program(random_model(3, **VARIANTS[name]), config, "random")


def _device(program, **options):
    from flightllm.sim.cycle import CycleDevice

    return CycleDevice(program.config, **options)


def _run(program, steps=3, **options):
    """(logits, digest, cycles of prefill and decode, trace)."""
    records = []
    driver = Driver(_device(program, trace=records.append, **options), program)
    logits = driver.prefill(IDS).tobytes()
    logits += driver.decode(5, steps).tobytes()
    cycles = [result.cycles for result in driver.results]
    return logits, memory_sha256(driver.device, program), cycles, records


@pytest.mark.parametrize(("name", "board"), [
    ("llama", "tiny"), ("sparse-8-minima", "tiny"), ("table4", "tiny"), ("opt", "tiny-2core"),
    ("llama-mqa-w3-kv4", "tiny-2core"),
])  # fmt: skip
def test_bits_are_the_functional_ones_and_time_passes(name, board):
    from flightllm.sim.functional import FunctionalDevice

    program = _program(name, board)
    driver = Driver(FunctionalDevice(program.config), program)
    want = driver.prefill(IDS).tobytes() + driver.decode(5, 3).tobytes()
    logits, digest, cycles, _ = _run(program)
    assert (logits, digest) == (want, memory_sha256(driver.device, program))
    assert all(count > 100 for count in cycles)


def test_a_unit_executes_one_instruction_at_a_time_in_order():
    records = _run(_program("llama", "tiny-2core"))[3]
    units = defaultdict(list)
    for record in records:
        units[record.core, record.unit].append(record)
    for mine in units.values():
        assert all(a.end <= b.start for a, b in zip(mine, mine[1:]))
        assert all(record.start <= record.end for record in mine)
    assert all(record.writes for record in records if record.name == "mv.linear")


def test_times_are_the_same_each_time_and_without_weights():
    program = _program("llama")
    first, second = _run(program)[2], _run(program)[2]
    assert first == second
    bare = dataclasses.replace(program, image=None)
    driver = Driver(_device(bare), bare)
    driver.prefill(IDS)
    driver.decode(5, 3)
    assert [result.cycles for result in driver.results] == first


def test_more_latency_costs_time_and_more_lanes_save_it():
    program = _program("llama")
    from flightllm.sim.cycle import PlainMemory

    slow, fast, late = (
        sum(_run(program, memory=memory)[2])
        for memory in (PlainMemory(200), PlainMemory(50), PlainMemory(50, pace=4.0))
    )
    assert slow > fast < late
    config = dataclasses.replace(load_config("tiny"), sfu_lanes=16)
    wide = sum(_run(_program("llama", config), memory=PlainMemory(50))[2])
    assert wide < fast


def test_an_instruction_that_waits_for_nobody_s_token_is_a_deadlock():
    from flightllm.spec.encoding import decode, encode
    from flightllm.spec.errors import VerifyError
    from flightllm.spec.isa import Unit

    program = _program("llama")
    code = program.cores[0]
    ops = list(decode([int(word) for word in code.words]))
    place = next(i for i, op in enumerate(ops) if op.kind.name == "misc.stat")
    ops[place] = dataclasses.replace(ops[place], wait=ops[place].wait | {Unit.ST})
    words = np.array(encode(ops), np.uint32)
    broken = dataclasses.replace(program, cores=[dataclasses.replace(code, words=words)])
    with pytest.raises(VerifyError, match="deadlock"):
        _run(dataclasses.replace(broken, image=None))


@pytest.mark.parametrize("name", ["opt", "qwen-biases", "llama"])
def test_no_load_waits_behind_a_matrix_that_the_weight_fifo_cannot_hold(name):
    config = dataclasses.replace(load_config("tiny"), prefetch_bytes=1024)
    program = build_program(random_model(3, **{**VARIANTS[name], "bits": 8}), config, "random")
    assert all(cycles > 100 for cycles in _run(dataclasses.replace(program, image=None))[2])


def test_no_head_s_values_wait_for_more_loads_than_a_queue_holds():
    from flightllm.sim.functional import FunctionalDevice

    config = dataclasses.replace(load_config("tiny"), prefetch_bytes=1024)
    many = {"dim": 512, "heads": 32, "kv_heads": 32, "head_dim": 16, "ffn_dim": 64, "layers": 1}
    program = build_program(random_model(3, **many), config, "random")
    logits, digest, cycles, _ = _run(program)
    assert all(count > 100 for count in cycles)
    for seed in range(3):  # units in any legal order
        driver = Driver(FunctionalDevice(config, seed=seed), program)
        assert driver.prefill(IDS).tobytes() + driver.decode(5, 3).tobytes() == logits
        assert memory_sha256(driver.device, program) == digest
