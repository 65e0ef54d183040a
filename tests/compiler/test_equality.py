"""The compiled program on the functional simulator gives the torch reference's bits."""

from __future__ import annotations

import numpy as np
import pytest
from driver import Driver
from random_quantized import VARIANTS, random_model

from flightllm.compiler.build import build_program
from flightllm.models.integer import IntegerCache, IntegerModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config


def _same(a: np.ndarray, b: np.ndarray) -> None:
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def _start(model, board: str, **options):
    config = load_config(board)
    program = build_program(model, config, "random")
    return Driver(FunctionalDevice(config, **options), program)


@pytest.mark.parametrize("board", ["tiny", "tiny-2core"])
@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_and_decode_equal_the_reference(name: str, board: str) -> None:
    model = random_model(3, **VARIANTS[name])
    driver, reference = _start(model, board), IntegerModel(model)
    ids = np.random.default_rng(1).integers(0, model.vocab, 43).tolist()
    cache = IntegerCache(model)
    _same(driver.prefill(ids[:37]), reference.forward(ids[:37], cache))
    for token in ids[37:]:
        _same(driver.decode(token), reference.forward([token], cache)[0])


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("heads, kv_heads, board", [
    (6, 6, "tiny"), (14, 7, "tiny"), (13, 13, "tiny"), (28, 28, "tiny-2core"),
])  # fmt: skip
def test_heads_outside_the_loops_of_attention(
    heads: int, kv_heads: int, board: str, seed: int | None
) -> None:
    """Orders that tokens leave open; fewer heads than LD asks ahead for, and more."""
    model = random_model(3, heads=heads, kv_heads=kv_heads, head_dim=16, layers=2)
    driver, reference = _start(model, board, seed=seed), IntegerModel(model)
    ids = np.random.default_rng(1).integers(0, model.vocab, 38).tolist()
    cache = IntegerCache(model)
    _same(driver.prefill(ids[:35]), reference.forward(ids[:35], cache))
    for token in ids[35:]:
        _same(driver.decode(token), reference.forward([token], cache)[0])
