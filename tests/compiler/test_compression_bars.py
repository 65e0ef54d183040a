"""What compression must reach on real models, on text that calibration never saw.

stories260k on its sample of stories, the demo model on the topics that were held out from it.
Activations and KV cache have 8 bits where nothing else is said, and so has the head. The rows and
the bars are those of `tools/accuracy.py`, which writes the same figures to docs/accuracy.md.
`make test-slow` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accuracy
import pytest

from flightllm.spec.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DEMO, STORIES = "The demo model", "stories260k"


@pytest.fixture(scope="module")
def cost(test_data: Path) -> Callable[[str, str], float]:
    """A model's perplexity in a row, executed, against float: 0.1 is 10 % more."""
    import flightllm

    try:
        subjects = {subject.title: subject for subject in accuracy.subjects()}
    except InputError as error:
        pytest.skip(str(error))
    known: dict[tuple[str, str], float] = {}

    def measured(title: str, row: str) -> float:
        if (title, row) not in known:
            subject = subjects[title]
            score = flightllm.evaluate(
                subject.model, subject.text, text_format=subject.text_format,
                pieces=accuracy.PIECES, **accuracy.ROWS[row],
            )  # fmt: skip
            assert score.ppl_quantized == score.ppl_executed
            known[title, row] = score.ppl_executed / score.ppl_float - 1
            print(f"{title}, {row}: {known[title, row]:+.2%}")
        return known[title, row]

    return measured


@pytest.mark.parametrize("title", [STORIES, DEMO])
@pytest.mark.parametrize("what", accuracy.CLOSES)
def test_a_method_closes_its_share(
    what: str, title: str, cost: Callable[[str, str], float]
) -> None:
    """Half of what rounding leaves, four fifths of what magnitude pruning leaves."""
    plain, better, share = accuracy.CLOSES[what]
    assert cost(title, better) <= (1 - share) * cost(title, plain)


def test_sparsegpt_with_masks_by_rows(cost: Callable[[str, str], float]) -> None:
    """Of what pruning by magnitude leaves, which is less with a mask for each row than for pairs,
    SparseGPT closes 79 %, and what is left is less than with pairs."""
    row = "w8g32, 8:16 by rows"
    assert cost(STORIES, row) <= 0.22 * cost(STORIES, f"{row}, magnitude")
    assert cost(STORIES, row) < cost(STORIES, "w8g32, 8:16")


@pytest.mark.parametrize("row", accuracy.RECOVERED)
def test_recovery_brings_the_demo_model_within_a_tenth(
    row: str, cost: Callable[[str, str], float]
) -> None:
    """From plain rounding and magnitude pruning, on text that the model itself writes."""
    assert cost(DEMO, row) <= 0.1


def test_keys_in_8_and_values_in_4_bits_cost_next_to_nothing(
    cost: Callable[[str, str], float],
) -> None:
    assert cost(STORIES, "w8g32, K 8, V 4") <= cost(STORIES, "w8g32") + 0.005
    assert cost(STORIES, "w8g32, KV 4") > 0.1


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
