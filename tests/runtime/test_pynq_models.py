"""Real checkpoints through PYNQ: tokens and memory of the direct executors."""

from __future__ import annotations

from pathlib import Path

import pytest

from flightllm import api

PROMPT = "Once upon a time"


def _same(model: str | Path, prompt: str, tokens: int, device: str, **options) -> None:
    made = api.build(model, "tiny", calibrate="none", **options)
    found = []
    executors = [("functional", None), ("board", device)]
    if device == "sim:rtl":
        executors.append(("rtl", None))
    for on, name in executors:
        with api.load(made.program, on, device=name, tokenizer=made.tokenizer) as loaded:
            result = loaded.generate(prompt, tokens=tokens)
            found.append((result.token_ids, result.memory_sha256))
    assert all(one == found[0] for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["w8g64", "w4g64"])
def test_stories260k(stories: Path, weights: str) -> None:
    _same(stories, PROMPT, 16, "sim:functional", weights=weights)


@pytest.mark.rtl
@pytest.mark.timeout(1800)
def test_stories260k_on_the_hardware(stories: Path) -> None:
    """The generated hardware of `tiny` behind PYNQ, and the direct executors."""
    _same(stories, PROMPT, 3, "sim:rtl", weights="w8g64")


@pytest.mark.rtl
@pytest.mark.timeout(1800)
def test_demo_model_on_the_hardware() -> None:
    _same("demo", "The with", 2, "sim:rtl")


@pytest.mark.slow
def test_demo_model() -> None:
    _same("demo", "The with statement", 8, "sim:functional")
