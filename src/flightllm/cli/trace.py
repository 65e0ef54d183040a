"""`flightllm trace`: a program's run as a timeline for Perfetto, one lane a unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flightllm.cli.options import Json
from flightllm.cli.output import facts, print_json

__all__ = ["trace"]


def trace(
    program: Annotated[Path, typer.Argument(metavar="PROGRAM", help="A compiled folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, JSON.")] = Path(
        "timeline.json"
    ),
    on: Annotated[str, typer.Option(help="Executor whose times are shown.")] = "cycle",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt, which are made up.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens to decode behind it.")] = 2,
    json: Json = False,
) -> None:
    """Write what each unit did when; open the file at https://ui.perfetto.dev."""
    from flightllm.timeline import write_timeline

    found = write_timeline(program, out, on=on, prompt=prompt, tokens=tokens)
    if json:
        print_json(found)
    else:
        facts(found)
