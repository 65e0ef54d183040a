"""`flightllm verilog`: a board's hardware as Verilog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flightllm.cli.options import Board, Json
from flightllm.cli.output import facts, print_json
from flightllm.spec.errors import InputError

__all__ = ["verilog"]


def verilog(
    board: Board = "tiny",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write.")] = None,
    json: Json = False,
) -> None:
    """Write a board's hardware as Verilog: a file for each unit, a file list, lint waivers."""
    from flightllm import api

    if out is None:
        raise InputError("verilog needs a folder to write: give -o DIR")
    made = api.write_verilog(board, out)
    result = {
        "board": made.config.name,
        "top": made.top,
        "folder": str(made.folder),
        "files": list(made.files),
        "lines": made.lines,
        "config_digest": made.config.digest,
        "verilog_seconds": made.seconds,
    }
    if json:
        print_json(result)
    else:
        facts({**result, "files": len(made.files)})
