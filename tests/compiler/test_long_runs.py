"""Whole runs: prompts of up to 200 tokens, up to 300 generated ones, both families, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from driver import Driver
from random_quantized import random_model

from flightllm.compiler.build import build_program
from flightllm.models.integer import IntegerCache, IntegerModel
from flightllm.sim.functional import FunctionalDevice
from flightllm.spec.config import load_config

FAMILIES = {
    "llama": {"window": None},
    "mistral": {"window": 70, "kv_bits": 4},
    "opt": {"activation": "relu", "rope": False, "biases": True, "kv_heads": 4},
}


def run(family: str, prompt: int, tokens: int, board: str) -> None:
    model = random_model(7, max_length=512, **FAMILIES[family])
    config = load_config(board)
    driver = Driver(FunctionalDevice(config), build_program(model, config, family))
    reference, cache = IntegerModel(model), IntegerCache(model)
    ids = np.random.default_rng(prompt).integers(0, model.vocab, prompt).tolist()
    logits = driver.prefill(ids)
    assert np.array_equal(logits, reference.forward(ids, cache))
    last = logits[-1]
    for _ in range(tokens):
        token = int(np.argmax(last))
        last = driver.decode(token)
        assert np.array_equal(last, reference.forward([token], cache)[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt, tokens", [(1, 40), (33, 5), (200, 12)])
def test_runs(family: str, prompt: int, tokens: int) -> None:
    run(family, prompt, tokens, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("board", ["tiny", "tiny-2core"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt, tokens", [(1, 300), (17, 300), (200, 300), (128, 1)])
def test_long_runs(family: str, prompt: int, tokens: int, board: str) -> None:
    run(family, prompt, tokens, board)
