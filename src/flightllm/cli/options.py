"""Options and arguments that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flightllm.spec.errors import InputError

__all__ = [
    "Board", "Calibrate", "HeadBits", "Json", "Kv", "Masks", "MaxLength", "Model", "On", "Program",
    "Pruning", "Recover", "RecoverState", "RecoverSteps", "Report", "Rounding", "Scaling",
    "Sparsity", "Weights", "read_prompt", "read_text",
]  # fmt: skip

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hugging Face folder, llama2.c file or zoo name.")
]
Program = Annotated[Path, typer.Argument(metavar="PROGRAM", help="Compiled program folder.")]
Board = Annotated[str, typer.Option("--board", help="Preset name or .toml file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
On = Annotated[
    str,
    typer.Option(
        "--on",
        help="Executor: functional, functional:SEED (random unit order), cycle, cycle:N (memory"
        " latency), rtl, rtl:SETTINGS (memory: latency=N,stalls=SHARE,dram, ...), board.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="w8g32, w4g128, w3.5g128, w2g128, ... or as-is.  [default: as-is for a quantised"
        " checkpoint, else w4g128]"
    ),
]
Kv = Annotated[int, typer.Option(help="Bits of a KV cache entry, 8 or 4.")]
HeadBits = Annotated[int, typer.Option(help="Bits of the last projection.")]
Sparsity = Annotated[str, typer.Option(help="none, 2:16, 4:16 or 8:16.")]
Calibrate = Annotated[
    str, typer.Option(help="auto (text sampled from the model), none, or a text file.")
]
Rounding = Annotated[str, typer.Option(help="gptq or nearest.")]
Scaling = Annotated[
    str, typer.Option(help="Channels between matrices: balance, awq, smoothquant or none.")
]
Pruning = Annotated[str, typer.Option(help="sparsegpt, wanda or magnitude.")]
Masks = Annotated[str, typer.Option(help="Who shares a sparse mask: pairs or rows.")]
Recover = Annotated[
    str, typer.Option(help="Train what was quantised: none, auto (on sampled text) or a text file.")
]
RecoverSteps = Annotated[int, typer.Option(help="Optimiser steps of the recovery.")]
RecoverState = Annotated[
    Path | None, typer.Option(help="File from which an interrupted recovery goes on.")
]
Report = Annotated[
    Path | None,
    typer.Option(help="An .html file, or a folder, for pictures and tables of the compression."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Tokens to serve.  [default: the model's, capped by the board's memory]"),
]


def read_text(path: Path) -> str:
    """A text file's contents; InputError when it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"text file {path} cannot be read: {reason}") from None


def read_prompt(prompt: str) -> str:
    """A prompt as given: the text itself, @FILE, or - for standard input."""
    if prompt == "-":
        return sys.stdin.read()
    return read_text(Path(prompt[1:])) if prompt.startswith("@") else prompt
