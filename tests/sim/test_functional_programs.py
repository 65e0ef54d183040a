"""Compiled programs: neither the order of units nor old buffer contents change a bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.spec.config import load_config
from flightllm.spec.device import memory_sha256
from flightllm.spec.encoding import decode, encode
from flightllm.spec.errors import VerifyError
from flightllm.spec.image import Program, load_program, save_program

pytest.importorskip("numba")

IDS = np.random.default_rng(1).integers(0, 96, 37).tolist()


def _program(name: str, board: str) -> Program:
    return build_program(random_model(3, **VARIANTS[name]), load_config(board), "random")


def _results(program: Program, seed: int | None, **options) -> tuple[bytes, bytes, str]:
    from flightllm.sim.functional import FunctionalDevice

    driver = Driver(FunctionalDevice(program.config, seed=seed, **options), program)
    logits = driver.prefill(IDS).tobytes()
    return logits, driver.decode(5, 4).tobytes(), memory_sha256(driver.device, program)


@pytest.mark.parametrize(("name", "board"), [
    ("llama", "tiny"), ("mistral-window", "tiny"), ("gpt2", "tiny-2core"),
    ("llama-mqa-w3-kv4", "tiny-2core"),
])  # fmt: skip
def test_random_orders_and_contents_change_nothing(name: str, board: str) -> None:
    program = _program(name, board)
    want = _results(program, None)
    for seed in range(2):
        assert _results(program, seed) == want


def test_a_program_from_disk_gives_the_same_bits(tmp_path) -> None:
    program = _program("llama", "tiny")
    save_program(program, tmp_path / "program")
    assert _results(load_program(tmp_path / "program"), None) == _results(program, None)


def test_traces_of_two_runs_are_equal_and_of_other_weights_are_not() -> None:
    traces = []
    for name in ("llama", "llama", "llama-mha-w8"):
        records: list = []
        _results(_program(name, "tiny"), None, trace=records.append)
        traces.append(records)
    assert traces[0] == traces[1] and len(traces[0]) > 100
    assert traces[0] != traces[2]


def test_every_dropped_wait_of_a_compiled_program_is_an_error() -> None:
    """Planted in turn into every fifth instruction of prefill that waits."""
    program = _program("llama", "tiny")
    code = program.cores[0]
    ops = decode(code.words.tolist())
    limit, at, waiting = code.entries["decode"], 0, []
    for i, op in enumerate(ops):
        if op.wait and at < limit:
            waiting.append(i)
        at += op.kind.words
    for i in waiting[::5]:
        bad = [*ops]
        bad[i] = dataclasses.replace(ops[i], wait=frozenset(sorted(ops[i].wait)[1:]))
        words = np.array(encode(bad), np.uint32)
        altered = dataclasses.replace(program, cores=[dataclasses.replace(code, words=words)])
        with pytest.raises(VerifyError, match="halt with|deadlock"):
            _results(altered, None)
