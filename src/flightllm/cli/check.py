"""`flightllm check`: whether a model will run on a board, and what to change where it will not."""

from __future__ import annotations

import typer

from flightllm.cli.options import (
    AttentionDensity,
    Board,
    HeadBits,
    Json,
    Kv,
    MaxLength,
    Model,
    Sparsity,
    Weights,
)
from flightllm.cli.output import print_json, table

__all__ = ["check"]


def check(
    model: Model,
    board: Board = "tiny",
    weights: Weights = None,
    kv: Kv = "8",
    head_bits: HeadBits = 8,
    sparsity: Sparsity = "none",
    attention_density: AttentionDensity = 1.0,
    max_length: MaxLength = None,
    json: Json = False,
) -> None:
    """What will run, what will not and why, and what to change; exit code 1 when it will not."""
    from flightllm import checking

    report = checking.check(
        model, board, weights=weights, kv=kv, head_bits=head_bits, sparsity=sparsity,
        attention_density=attention_density, max_length=max_length,
    )  # fmt: skip
    if json:
        print_json({"model": model, "board": board, **report.to_dict()})
    else:
        rows = [[f.what, "yes" if f.ok else "no", f.detail] for f in report.findings]
        table(["what", "ok", "detail"], rows + [["change", "", text] for text in report.changes])
    if not report.ok:
        raise typer.Exit(1)
