"""The page on lengths: its figures come from the compiler, and only from there."""

import json
import subprocess
import sys

import lengths
import pytest

from flightllm.spec.config import load_config


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (99_999, "99,999 B"),
        (100_000, "100 KB"),
        (999_499, "999 KB"),
        (999_500, "1.00 MB"),
        (9_994_000, "9.99 MB"),
        (9_995_000, "10.0 MB"),
        (3_250_000_000, "3.25 GB"),
        (1_670_000_000_000, "1.67 TB"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert lengths.size(count) == text


@pytest.mark.parametrize("model", lengths.MODELS)
def test_adaptive_is_small_and_the_schemes_are_ordered(model: str) -> None:
    sizes = lengths.measure(model, load_config(lengths.BOARD))
    assert sizes.adaptive <= 65536
    assert sizes.adaptive < sizes.bucketed < sizes.unrolled


def test_figures_are_those_of_the_command_line() -> None:
    sizes = lengths.measure("opt-6.7b", load_config(lengths.BOARD))
    command = ["compile", "opt-6.7b", "--board", lengths.BOARD, "--weights", lengths.WEIGHTS]
    for scheme in ("bucketed", "unrolled"):
        done = subprocess.run(
            [sys.executable, "-m", "flightllm", *command, "--lengths", scheme, "--json"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["instruction_bytes"] == getattr(sizes, scheme)


def test_page_shows_every_model_and_says_what_is_published() -> None:
    text = lengths.page()
    for model in lengths.MODELS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {model} |"))
        sizes = lengths.measure(model, load_config(lengths.BOARD))
        assert f"| {lengths.size(sizes.adaptive)} |" in row
        assert ("(memory)" in row) == sizes.limited
    assert "as published" in text and "3.25 GB | 1.67 TB" in text
