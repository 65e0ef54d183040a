"""What quantisation costs a real model: stories260k on text that calibration never saw.

Activations and KV cache are quantised (8 bits), the head has 8 bits. `make test-slow` runs it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("weights", "bar"), [("w8g32", 0.005), ("w4g32", 0.08), ("w3.5g32", None)]
)  # fmt: skip
def test_perplexity(weights: str, bar: float | None, stories: Path, test_data: Path) -> None:
    import flightllm

    text = (test_data / "text" / "tinystories_sample.txt").read_text()
    golden = float(np.load(stories / "golden.npz")["ppl"])
    found = flightllm.evaluate(str(stories), text, weights=weights, text_format="documents")
    assert found.ppl_quantized == found.ppl_executed
    loss = found.ppl_quantized / golden - 1
    print(f"{weights}: perplexity {found.ppl_quantized:.5f}, {loss:+.2%} on {golden:.5f}")
    assert bar is None or loss <= bar


def test_agreement_with_the_float_models_greedy_text(stories: Path) -> None:
    """Teacher forced along golden.npz's greedy tokens, behind the prompt."""
    from flightllm import api
    from flightllm.models.integer import IntegerModel

    golden = np.load(stories / "golden.npz")
    ids = golden["greedy_ids"].tolist()  # the prompt stands in front
    prompt = golden["prompt_ids"].size
    made = api.build(str(stories), weights="w8g32")
    assert made.quantised is not None
    logits = IntegerModel(made.quantised.model).forward(ids[:-1])
    agreement = float(np.mean(np.argmax(logits[prompt - 1 :], 1) == ids[prompt:]))
    print(f"top-1 agreement with greedy_ids: {agreement:.2%}")
    assert agreement >= 0.97
