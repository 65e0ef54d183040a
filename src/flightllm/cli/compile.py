"""`flightllm compile`: a model to a program folder."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flightllm.cli import STARTED
from flightllm.cli.options import (
    Board,
    Json,
    Model,
    Report,
    quantising,
)
from flightllm.cli.output import facts, note, print_json, progress_bar
from flightllm.spec.errors import InputError

if TYPE_CHECKING:
    from flightllm.api import Compilation

__all__ = ["compile_model"]


@quantising
def compile_model(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write.")] = None,
    board: Board = "tiny",
    lengths: Annotated[
        str,
        typer.Option(help="adaptive; bucketed and unrolled are sized, but nothing is written."),
    ] = "adaptive",
    dump: Annotated[Path | None, typer.Option(help="Folder for each stage as text.")] = None,
    report: Report = None,
    json: Json = False,
    *,
    quantised: dict[str, Any],
) -> None:
    """Compile a model: instructions, memory image, manifest with digests."""
    from flightllm import api

    adaptive = lengths == "adaptive"
    if out is None and adaptive:
        raise InputError("compile needs a folder to write: give -o DIR")
    with progress_bar() as progress:
        made = api.build(
            model, board, lengths=lengths, out=out if adaptive else None, dump=dump,
            report=report, progress=progress, **quantised,
        )  # fmt: skip
    result = _result(made, board, lengths)
    if not adaptive:
        note(f"lengths {lengths}: sized only, no folder is written")
    fewer = made.program.model.max_length < result["model_max_length"]
    if fewer and quantised["max_length"] is None:
        note(
            f"maximum length {result['max_length']}: the model's {result['model_max_length']} "
            f"do not fit the memory of {made.program.config.name}"
        )
    for text in result["notes"]:
        note(text)
    if json:
        print_json(result)
    else:
        hidden = ("notes", "seconds", "passes")
        facts({name: value for name, value in result.items() if name not in hidden})
        for done in [] if made.quantised is None else made.quantised.report.passes:
            print(done)


def _result(made: Compilation, board: str, lengths: str) -> dict[str, Any]:
    program, report = made.program, made.program.report
    sizes = report["instruction_bytes_by_lengths"]
    # Registers that a host writes are part of what control logic reads, whatever the scheme.
    registers = program.instruction_bytes - sizes["adaptive"]
    weight_work = 0.0
    if made.quantised is not None:
        weight_work = made.seconds["quantise"] + made.seconds.get("save", 0.0)
    return {
        "model": made.checkpoint.source,
        "board": board,
        "lengths": lengths,
        "instruction_bytes": sizes[lengths] + registers,
        "compile_seconds": time.perf_counter() - STARTED - weight_work,
        "weight_bytes": report["weight_bytes"],
        "average_weight_bits": report["average_weight_bits"],
        "average_code_bits": report["average_code_bits"],
        "max_length": program.model.max_length,
        "model_max_length": made.checkpoint.config.max_length,
        "shape_only": program.shape_only,
        "digest": program.digest,
        "config_digest": program.config.digest,
        "folder": None if program.folder is None else str(program.folder),
        "seconds": made.seconds,
        "passes": []
        if made.quantised is None
        else [asdict(done) for done in made.quantised.report.passes],
        "notes": [] if made.quantised is None else made.quantised.report.notes,
    }
