"""`flightllm bitstream`: a board's bitstream, or the project for the tool that makes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flightllm.cli.options import Json
from flightllm.cli.output import facts, print_json, table
from flightllm.spec.config import load_config

__all__ = ["bitstream"]


def bitstream(
    out: Annotated[Path, typer.Option("-o", help="Folder for the project and what it builds.")],
    board: Annotated[str, typer.Option(help="Preset name or .toml file.")],
    json: Json = False,
) -> None:
    """Make a bitstream; where the vendor's tool is missing, write a project ready for it."""
    from flightllm.bitstream import make_bitstream

    built = make_bitstream(load_config(board), out, lambda line: print(line, file=sys.stderr))
    slack = None if built.timing is None else {
        "setup_ns": built.timing.setup, "hold_ns": built.timing.hold, "fmax_mhz": built.timing.mhz,
        "met": built.timing.met,
    }  # fmt: skip
    if json:
        print_json({"bitstream": str(built.path), "resources": built.resources, "timing": slack})
    else:
        facts({"bitstream": built.path, **({f"timing {k}": v for k, v in (slack or {}).items()})})
        rows = [[kind, *count.values()] for kind, count in built.resources.items()]
        table(["resource", "used", "available"], rows)
    if slack is not None and not slack["met"]:
        raise typer.Exit(1)
