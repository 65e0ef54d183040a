"""What compression must reach on real models, on text that calibration never saw.

stories260k on its sample of stories, the demo model on the topics that were held out from it.
Activations and KV cache have 8 bits where nothing else is said, and so has the head.
`make test-slow` runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flightllm.models.corpus import HELD_OUT, TEXT_DIGEST, load_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cost(stories: Path, test_data: Path) -> Any:
    """stories260k's perplexity under options, executed, against float: 0.1 is 10 % more."""
    import flightllm

    text = (test_data / "text" / "tinystories_sample.txt").read_text()
    known: dict[str, float] = {}

    def measured(**options: Any) -> float:
        key = repr(sorted(options.items()))
        if key not in known:
            score = flightllm.evaluate(str(stories), text, text_format="documents", **options)
            assert score.ppl_quantized == score.ppl_executed
            known[key] = score.ppl_executed / score.ppl_float - 1
            print(f"{key}: {known[key]:+.2%}")
        return known[key]

    return measured


@pytest.mark.parametrize("weights", ["w4g32", "w3g32"])
def test_calibration_closes_half_of_what_rounding_leaves(weights: str, cost: Any) -> None:
    assert cost(weights=weights) <= 0.5 * cost(weights=weights, calibrate="none")


@pytest.mark.parametrize("masks", ["pairs", "rows"])
def test_sparsegpt_closes_four_fifths_of_what_magnitude_leaves(masks: str, cost: Any) -> None:
    options = {"weights": "w8g32", "sparsity": "8:16", "masks": masks}
    assert cost(**options) <= 0.2 * cost(calibrate="none", **options)


def test_keys_are_what_hurts_in_4_bits(stories: Path) -> None:
    """And K smoothing takes back most of it."""
    from flightllm.compiler.quantise import quantise
    from flightllm.compiler.scheme import QuantOptions
    from flightllm.models.checkpoint import open_checkpoint

    report = quantise(open_checkpoint(stories), QuantOptions("w8g32", kv=4)).report
    passes = {p.name: p for p in report.passes}
    print("\n".join(map(str, report.passes)))
    price = {name: passes[name].after / passes[name].before - 1 for name in ("values", "keys")}  # type: ignore[operator]
    assert price["keys"] > 5 * price["values"]
    left = passes["smooth k"].after - passes["values"].after  # type: ignore[operator]
    lost = passes["keys"].after - passes["values"].after  # type: ignore[operator]
    assert left < 0.6 * lost


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "w3.5g32", "calibrate": "none"},
        {"weights": "w4g32", "sparsity": "8:16", "calibrate": "none"},
    ],
)
def test_recovery_brings_the_demo_model_within_a_tenth(options: dict[str, Any]) -> None:
    """From plain rounding and magnitude pruning, on text that the model itself writes."""
    import flightllm

    corpus = load_corpus()
    if corpus.digest != TEXT_DIGEST:
        pytest.skip("this Python's help texts are not those of the demo model")
    text = "\n\n".join(corpus.held_out[name] for name in sorted(HELD_OUT))
    score = flightllm.evaluate(
        "demo", text, text_format="continuous", recover="auto", **options
    )
    assert score.ppl_quantized == score.ppl_executed
    print(f"{options}: {score.ppl_executed / score.ppl_float - 1:+.2%}")
    assert score.ppl_executed <= 1.1 * score.ppl_float
