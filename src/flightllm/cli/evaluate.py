"""`flightllm eval`: perplexity in float, quantised in torch, and executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flightllm.cli.options import (
    Board,
    Json,
    Model,
    On,
    Report,
    quantising,
    read_text,
)
from flightllm.cli.output import facts, print_json, progress_bar

__all__ = ["evaluate"]


@quantising
def evaluate(
    model: Model,
    text: Annotated[Path, typer.Option(help="Text file to score.")],
    text_format: Annotated[
        str | None,
        typer.Option(
            help="documents or continuous.  [default: documents where <|endoftext|> occurs]"
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens scored together.  [default: 1024, or what fits]")
    ] = None,
    on: On = "functional",
    board: Board = "tiny",
    report: Report = None,
    json: Json = False,
    *,
    quantised: dict[str, Any],
) -> None:
    """Score a model on a text: float, quantised in torch, executed."""
    from flightllm import api

    contents = read_text(text)
    with progress_bar() as progress:
        result = api.evaluate(
            model, contents, board, text_format=text_format, context=context, on=on,
            report=report, progress=progress, **quantised,
        ).to_dict()  # fmt: skip
    if json:
        print_json(result)
    else:
        facts(result)
