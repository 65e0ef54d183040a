"""The page on accuracy: its rows say what was measured, and of which demo model."""

import re
from pathlib import Path
from typing import Any

import accuracy
import pytest

import flightllm
from flightllm.compiler.scheme import QuantOptions
from flightllm.evaluation import Evaluation


def score(executed: float, quantised: float | None = None) -> Evaluation:
    return Evaluation(10.0, executed if quantised is None else quantised, executed, 1234, 0.5, 2,
                      512, "functional", 600)  # fmt: skip


@pytest.mark.parametrize("options", accuracy.ROWS.values(), ids=accuracy.ROWS)
def test_rows_are_options_that_exist(options: dict[str, Any]) -> None:
    QuantOptions(**options)


def test_table_states_cost_and_equality() -> None:
    subject = accuracy.Subject("M", "m", "text", "continuous", "a text")
    text = accuracy.section(subject, {"w8g32": score(10.05), "w2g32": score(12.0, 12.5)})
    assert "1,234 tokens in 2 pieces of at most 512, 600 of the tokens executed." in text
    assert "| w8g32 | 10.0500 | +0.50% | equal | 50.00% |" in text
    assert "| w2g32 | 12.0000 | +20.00% | DIFFERENT | 50.00% |" in text


def test_bars_are_held_against_the_rows() -> None:
    scores = {
        "w4g32, not calibrated": score(12.0), "w4g32": score(10.8),
        "w8g32, 8:16 by magnitude": score(20.0), "w8g32, 8:16": score(12.1),
        "w3.5g32, not calibrated, recovered": score(11.01),
    }  # fmt: skip
    first, second, third = accuracy.bars("The demo model", scores)
    assert "what rounding leaves | 60% | at least 50% | met |" in first
    assert "what magnitude leaves | 79% | at least 80% | MISSED |" in second
    assert "loss | +10.10% | at most +10 % | MISSED |" in third
    assert len(accuracy.bars("Another", scores)) == 2
    names = {name for pair in accuracy.CLOSES.values() for name in pair[:2]}
    assert {*names, *accuracy.RECOVERED} <= set(accuracy.ROWS)


def test_main_measures_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def evaluate(model: str, text: str, **options: Any) -> Evaluation:
        seen.append((model, text, options))
        return score(11.0)

    subject = accuracy.Subject("M", "m", "text", "continuous", "a text")
    monkeypatch.setattr(flightllm, "evaluate", evaluate)
    monkeypatch.setattr(accuracy, "subjects", lambda: [subject])
    monkeypatch.setattr(accuracy, "PAGE", tmp_path / "accuracy.md")
    monkeypatch.setattr(accuracy, "FOUND", tmp_path / "accuracy.json")
    assert accuracy.main([], lambda text: None) == 0
    assert [options for _, _, options in seen] == [
        {"text_format": "continuous", "pieces": accuracy.PIECES, **options}
        for options in accuracy.ROWS.values()
    ]
    text = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    assert text.startswith("# Accuracy\n\n") and accuracy.digest() in text
    assert all(f"| {name} | 11.0000 |" in text for name in accuracy.ROWS)
    # A second run measures nothing; one with --again, or with another demo model, everything.
    count = len(seen)
    assert accuracy.main([], lambda text: None) == 0 and len(seen) == count
    assert accuracy.main(["--again"], lambda text: None) == 0 and len(seen) == 2 * count
    monkeypatch.setattr(accuracy, "digest", lambda: "another")
    assert accuracy.main([], lambda text: None) == 0 and len(seen) == 3 * count


def test_an_interrupted_run_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([score(11.0), score(12.0)])
    subject = accuracy.Subject("M", "m", "text", "continuous", "a text")
    monkeypatch.setattr(flightllm, "evaluate", lambda *args, **options: next(calls))
    monkeypatch.setattr(accuracy, "subjects", lambda: [subject])
    monkeypatch.setattr(accuracy, "PAGE", tmp_path / "accuracy.md")
    monkeypatch.setattr(accuracy, "FOUND", tmp_path / "accuracy.json")
    with pytest.raises(StopIteration):
        accuracy.main([], lambda text: None)
    text = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    first, second = list(accuracy.ROWS)[:2]
    assert f"| {first} | 11.0000 |" in text and f"| {second} | 12.0000 |" in text
    assert text.count(" | equal | ") == 2


def test_demo_is_scored_on_what_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLIGHTLLM_TEST_DATA", raising=False)
    corpus = accuracy.load_corpus()
    if corpus.digest != accuracy.TEXT_DIGEST:
        pytest.skip("this Python's help texts are not those of the demo model")
    (subject,) = accuracy.subjects()
    assert all(text in subject.text for text in corpus.held_out.values())


def test_page_is_of_the_demo_model_that_is_shipped() -> None:
    if not accuracy.PAGE.is_file():
        pytest.skip("docs/accuracy.md has not been made: run `make accuracy`")
    text = accuracy.PAGE.read_text(encoding="utf-8")
    measured = re.search(r"digest `([0-9a-f]{16})`", text)
    assert measured is not None
    assert measured[1] == accuracy.digest(), "the demo model is another one: run `make accuracy`"
    assert "DIFFERENT" not in text and "MISSED" not in text
