"""docs/continuous-integration.md: the workflow is well formed and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_blocks import blocks

from flightllm.cli.app import app

yaml = pytest.importorskip("yaml")
PAGE = Path(__file__).parents[2] / "docs" / "continuous-integration.md"


def _steps() -> list[dict[str, Any]]:
    (block,) = (b for b in blocks(PAGE) if b.language == "yaml")
    workflow = yaml.safe_load(block.text)
    assert workflow["jobs"].keys() == {"simulate"} and workflow[True]  # YAML reads `on` as true
    job = workflow["jobs"]["simulate"]
    assert job["runs-on"] == "ubuntu-latest"
    return job["steps"]


def _commands() -> list[list[str]]:
    lines = [line for step in _steps() for line in step.get("run", "").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("flightllm ")]


def test_every_step_uses_a_pinned_action_or_runs_something() -> None:
    for step in _steps():
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_every_command_and_option_exists() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    commands = _commands()
    assert {words[1] for words in commands} == {"compile", "compare", "run"}
    for _, name, *words in commands:
        options = {option for p in known[name].params for option in p.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= options


def test_the_extras_that_it_installs_exist() -> None:
    text = (PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    install = next(step["run"] for step in _steps() if step.get("name") == "Install")
    for extra in re.search(r"flightllm\[([\w,]+)\]", install)[1].split(","):  # type: ignore[index]
        assert re.search(rf"^{extra} = \[", text, re.MULTILINE)
