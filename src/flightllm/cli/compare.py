"""`flightllm compare`: two executors on one program, instruction by instruction."""

from __future__ import annotations

from typing import Annotated

import typer

from flightllm.cli.options import Json, Program, read_prompt
from flightllm.cli.output import print_json

__all__ = ["compare"]


def compare(
    program: Program,
    between: Annotated[
        tuple[str, str], typer.Option(help="Two executors; functional:SEED shuffles the units.")
    ] = ("functional", "functional:1"),
    prompt: Annotated[
        str | None, typer.Option(help="Text, @FILE or -.  [default: the first token of a text]")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 8,
    json: Json = False,
) -> None:
    """Equal, or the first instruction and field in which two executors differ."""
    from flightllm import api
    from flightllm.comparison import compare as run_both
    from flightllm.spec.image import load_program

    found = load_program(program)
    ids = [found.model.bos or 0] if prompt is None else api.prompt_ids(found, read_prompt(prompt))
    result = run_both(found, between, ids, tokens)
    if json:
        print_json(result.to_dict())
    elif result.difference is None:
        print(f"equal: {result.instructions:,} instructions, {len(result.token_ids)} tokens")
    else:
        print(f"different: {_sentence(result.difference)}")
    if not result.equal:
        raise typer.Exit(1)


def _sentence(found: object) -> str:
    from flightllm.comparison import Difference

    assert isinstance(found, Difference)
    where = ""
    if found.core is not None:
        where = f"core {found.core} {found.unit} instruction {found.index}"
    if found.name is not None:
        where += f" ({found.name} at word {found.address})"
    return f"{where} {found.field}: {found.first} against {found.second}".strip()
