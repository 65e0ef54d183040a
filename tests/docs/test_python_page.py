"""docs/python-api.md names every option of the calls and every member of their results."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from flightllm import api, evaluation
from flightllm.runtime.generate import Generation

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python-api.md").read_text(encoding="utf-8")


def test_options_of_compile_are_those_of_the_call() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", PAGE, re.M))
    real = {
        name: parameter.default
        for name, parameter in inspect.signature(api.build).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    quoted = {n: f'"{v}"' if isinstance(v, str) else str(v) for n, v in real.items()}
    assert said == quoted


@pytest.mark.parametrize(
    "name", [*(entry.name for entry in fields(Generation)), "to_dict", "build", "stream"]
)
def test_name_is_on_the_page(name: str) -> None:
    assert f"`{name}" in PAGE or f".{name}`" in PAGE


def test_options_of_load_and_evaluate_are_on_the_page() -> None:
    for call in (api.load, evaluation.evaluate):
        for name, parameter in inspect.signature(call).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert re.search(rf"\b{name}\b", PAGE), name
