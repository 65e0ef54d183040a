"""Prefill of a tile in two halves: the same bits as in one piece, whatever the prompt's length."""

import dataclasses

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.compiler.builder import halves
from flightllm.spec.config import load_config

pytest.importorskip("numba")

IDS = np.random.default_rng(2).integers(0, 96, 56).tolist()


def _config(board, tile):
    config = load_config(board)
    return dataclasses.replace(config, prefill_tile=tile, attention_tile=8)


def _logits(name, config, parts, seed=None):
    from flightllm.sim.functional import FunctionalDevice

    program = build_program(random_model(3, **VARIANTS[name]), config, "random")
    driver, out, at = Driver(FunctionalDevice(config, seed=seed), program), [], 0
    for count in parts:
        out.append(driver.prefill(IDS[at : at + count]))
        at += count
    return np.concatenate([*out, driver.decode(5, 2)[None]])


@pytest.mark.parametrize(("name", "board"), [
    ("llama", "tiny"), ("opt", "tiny-2core"), ("mistral-window", "tiny"),
])  # fmt: skip
def test_halves_change_no_bit(name, board):
    one, two = _config(board, 8), _config(board, 32)
    assert not halves(one) and halves(two)
    parts = (32, 5, 17)  # a whole tile, one that is half empty, one with a single token in its half
    want = _logits(name, one, parts)
    assert want.tobytes() == _logits(name, two, parts).tobytes()
    assert want.tobytes() == _logits(name, two, parts, seed=1).tobytes()


def test_a_mistaken_half_is_noticed(monkeypatch):
    from flightllm.compiler import builder

    want = _logits("llama", _config("tiny", 8), (32,))
    monkeypatch.setattr(builder.Builder, "position", property(lambda self: builder.POS))
    assert want.tobytes() != _logits("llama", _config("tiny", 32), (32,)).tobytes()


def test_halves_need_more_to_compute_than_to_read():
    assert halves(load_config("u280")) and halves(load_config("vhk158"))
    assert not halves(load_config("tiny")) and not halves(load_config("kv260"))
