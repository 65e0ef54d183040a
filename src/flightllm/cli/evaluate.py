"""`flightllm eval`: perplexity in float, quantised in torch, and executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flightllm.cli.options import (
    Board,
    Calibrate,
    HeadBits,
    Json,
    Kv,
    Masks,
    MaxLength,
    Model,
    On,
    Pruning,
    Recover,
    RecoverState,
    RecoverSteps,
    Report,
    Rounding,
    Scaling,
    Sparsity,
    Weights,
    read_text,
)
from flightllm.cli.output import facts, print_json, progress_bar

__all__ = ["evaluate"]


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
    weights: Weights = None,
    kv: Kv = 8,
    head_bits: HeadBits = 8,
    sparsity: Sparsity = "none",
    calibrate: Calibrate = "auto",
    rounding: Rounding = "gptq",
    scaling: Scaling = "balance",
    pruning: Pruning = "sparsegpt",
    masks: Masks = "pairs",
    recover: Recover = "none",
    recover_steps: RecoverSteps = 300,
    recover_state: RecoverState = None,
    max_length: MaxLength = None,
    report: Report = None,
    json: Json = False,
) -> None:
    """Score a model on a text: float, quantised in torch, executed."""
    from flightllm import api

    contents = read_text(text)
    with progress_bar() as progress:
        result = api.evaluate(
            model, contents, board, text_format=text_format, context=context, on=on,
            weights=weights, kv=kv, head_bits=head_bits, sparsity=sparsity, calibrate=calibrate,
            rounding=rounding, scaling=scaling, pruning=pruning, masks=masks, recover=recover,
            recover_steps=recover_steps, recover_state=recover_state, max_length=max_length,
            report=report, progress=progress,
        ).to_dict()  # fmt: skip
    if json:
        print_json(result)
    else:
        facts(result)
