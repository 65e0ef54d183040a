"""docs/cli.md names every command, option, default and JSON key there is, and no other."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from flightllm.cli import main
from flightllm.cli.app import app
from flightllm.comparison import Difference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
QUANTISATION = (
    "weights", "kv", "head-bits", "sparsity", "calibrate", "rounding", "scaling", "pruning",
    "masks", "recover", "recover-steps", "recover-state", "attention-density",
    "max-length",
)  # fmt: skip


def sections() -> dict[str, str]:
    """What the page says of each command, by its name; the shared options under ""."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    found = {"": next(part for part in parts if part.startswith("Quantisation options"))}
    for part in parts:
        heading = re.match(r"`flightllm (\w+)", part)
        if heading:
            found[heading[1]] = part
    return found


def commands() -> dict[str, Any]:
    """The commands that the program has."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def options(command: Any) -> dict[str, Any]:
    """Long options of a command with their defaults."""
    return {
        flag[2:]: parameter.default
        for parameter in command.params
        for flag in parameter.opts
        if flag.startswith("--") and flag != "--help"
    }


def named(text: str) -> set[str]:
    """Long options that a section names outside its examples."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return set(re.findall(r"`--([a-z][a-z-]*)", prose))


def shown(default: object) -> str:
    """A default as the page writes it."""
    return f"{default:g}" if isinstance(default, (int, float)) else str(default)


def test_every_command_has_a_section() -> None:
    assert set(sections()) - {""} == set(commands())


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_is_named_and_no_other(name: str) -> None:
    real, text = set(options(commands()[name])), sections()[name]
    shared = real.intersection(QUANTISATION) if "quantisation options" in text.lower() else set()
    assert named(text) | shared == real


def test_shared_options_are_those_of_compile() -> None:
    assert named(sections()[""]) == set(QUANTISATION) <= set(options(commands()["compile"]))


@pytest.mark.parametrize("name", ["compile", "run", "eval"])
def test_defaults_in_tables_are_those_of_the_program(name: str) -> None:
    rows = re.findall(
        r"^\| `--([a-z-]+)[^|]*\| `?([^|`]*)`? \|", sections()[""] + sections()[name], re.M
    )
    said, real = dict(rows), options(commands()[name])
    fixed = {option for option in said if not isinstance(real[option], (bool, type(None)))}
    assert len(fixed) >= 4
    assert {option: said[option] for option in fixed} == {o: shown(real[o]) for o in fixed}


@pytest.mark.parametrize(
    ("name", "default"), [("check", "board"), ("compile", "lengths"), ("compare", "between")]
)
def test_defaults_in_lists_are_those_of_the_program(name: str, default: str) -> None:
    value = options(commands()[name])[default]
    text = " ".join(value) if isinstance(value, tuple) else value
    assert f"`--{default}` (`{text}`)" in sections()[name]


# ------------------------------------------------------------------- keys


def keys(value: Any) -> set[str]:
    """Keys of a JSON object, and of the objects in its lists."""
    found = set(value)
    for part in value.values():
        for item in part if isinstance(part, list) else ():
            found |= keys(item) if isinstance(item, dict) else set()
    return found


def documented(text: str) -> set[str]:
    """Keys that a section lists: in its table of keys, or in the paragraph that begins so."""
    if "| key | |" in text:
        rows = re.findall(r"^\| ([^|]*) \|", text.split("| key | |")[1], re.M)
        return {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    paragraph = re.search(r"^Keys: .*?(?:\n\n|\Z)", text, re.M | re.S)
    assert paragraph is not None
    return set(re.findall(r"`(\w+)`", paragraph[0]))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and the compiled demo model."""
    folder = tmp_path_factory.mktemp("cli-page")
    (folder / "text.txt").write_text("The for statement.\n", encoding="utf-8")
    options = ["--calibrate", "none", "--max-length", "32"]
    assert main(["compile", "demo", *options, "-o", str(folder / "program")]) == 0
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "boards",
        "models",
        "check demo",
        "compile opt-125m --board u280 --lengths bucketed",
        "run {work}/program --prompt x --tokens 2",
        "eval demo --text {work}/text.txt --calibrate none --max-length 32",
        "compare {work}/program --tokens 1",
        "disasm {work}/program",
        "estimate demo --context 32 --prefill 4",
        "resources --board tiny-2core",
        "trace {work}/program -o {work}/timeline.json --prompt 4 --tokens 1",
    ],
)
def test_keys_are_documented(line: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = line.format(work=work).split()
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    real = keys(json.loads(capsys.readouterr().out))
    said = documented(sections()[arguments[0]])
    if arguments[0] == "compare":  # what a difference has, which two equal runs do not show
        real |= {field.name for field in dataclasses.fields(Difference)}
    assert said == real


def test_what_is_left_out_is_noticed() -> None:
    text = sections()["run"]
    assert named(text.replace("`--seed`", "")) != named(text)
    assert documented(text.replace("| `text` |", "| |")) == documented(text) - {"text"}
