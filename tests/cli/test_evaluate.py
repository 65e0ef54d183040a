"""`flightllm eval`: three perplexities of one text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flightllm
from flightllm import evaluation
from flightllm.runtime.likelihood import Likelihood
from flightllm.spec.errors import InputError

TEXT = "a small model says small things<|endoftext|>again and\nagain"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_executed_equals_quantised_to_the_last_digit(cli, model: Path, text: Path) -> None:
    for options in ((), ("--weights", "w8g32", "--board", "tiny-2core"),
                    ("--kv", "4"), ("--kv", "8/4")):  # fmt: skip
        done = cli("eval", model, "--text", text, "--calibrate", "none", *options, "--json")
        assert done.code == 0, done.err
        result = done.json
        assert result["ppl_executed"] == result["ppl_quantized"] != result["ppl_float"]
        assert 0 < result["top1_agreement"] <= 1
        assert result["sequences"] == 2 and result["context"] == 64


def test_continuous_windows(cli, model: Path, text: Path) -> None:
    options = ("--calibrate", "none", "--text-format", "continuous", "--context", 5, "--json")
    result = cli("eval", model, "--text", text, *options).json
    assert result["context"] == 5 and result["sequences"] == 4
    assert result["ppl_executed"] == result["ppl_quantized"]


def test_some_pieces_are_executed(model: Path) -> None:
    whole, part = (
        flightllm.evaluate(model, TEXT, calibrate="none", pieces=pieces) for pieces in (None, 1)
    )
    assert part.executed_tokens < whole.executed_tokens == whole.tokens
    assert replace(part, executed_tokens=whole.tokens) == whole
    with pytest.raises(InputError, match="pieces: 0 is not at least 1"):
        flightllm.evaluate(model, TEXT, calibrate="none", pieces=0)


def test_an_executor_that_differs_is_seen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Likelihood:
        found = execute(*arguments)
        found.nll[0] += 1e-9
        return found

    execute = evaluation.execute
    monkeypatch.setattr(evaluation, "execute", wrong)
    score = flightllm.evaluate(model, TEXT, calibrate="none", pieces=1)
    assert score.ppl_executed != score.ppl_quantized


def test_text_output(cli, model: Path, text: Path) -> None:
    done = cli("eval", model, "--text", text, "--calibrate", "none")
    assert done.code == 0 and "ppl_executed" in done.out


def test_report_states_the_executed_perplexity(
    cli, model: Path, text: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    options = ("--calibrate", "none", "--report", page, "--json")
    done = cli("eval", model, "--text", text, *options)
    assert done.code == 0, done.err
    assert f"evaluated text: {done.json['ppl_executed']:.4f}" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--report", "no/such/folder/r.html"), "is in no folder that exists"),
        (("--rounding", "up"), "rounding: 'up' is not one of gptq, nearest"),
        (("--recover", "gone.txt"), "recover: there is no file 'gone.txt'"),
        (("--context", "65"), "context: 65 exceeds the program's maximum length of 64"),
        (("--context", "1"), "leave nothing to predict"),
        (("--text-format", "lines"), "'lines' is neither"),
        (("--text", "gone.txt"), "gone.txt cannot be read"),
    ],
)
def test_wrong_options_are_refused(
    refused, model: Path, text: Path, options: tuple, message: str
) -> None:
    arguments = ("eval", model, "--calibrate", "none", "--text", text, *options)
    assert message in refused(*arguments)


def test_shape_has_nothing_to_score(refused, text: Path) -> None:
    message = refused("eval", "tinyllama-1.1b", "--board", "u280", "--text", text)
    assert "a shape without weights" in message


def test_stories_documents(cli, stories: Path, test_data: Path, tmp_path: Path) -> None:
    whole = (test_data / "text" / "tinystories_sample.txt").read_text()
    part = tmp_path / "part.txt"
    part.write_text("<|endoftext|>".join(whole.split("<|endoftext|>")[:2]))
    done = cli("eval", stories, "--text", part, "--weights", "w8g32", "--calibrate", "none",
               "--json")  # fmt: skip
    result = done.json
    assert result["ppl_executed"] == result["ppl_quantized"]
    assert abs(result["ppl_quantized"] / result["ppl_float"] - 1) < 0.02
    assert result["top1_agreement"] > 0.94
