"""`flightllm resources`: what a configuration takes of its device."""

from __future__ import annotations

from typing import Annotated

import typer

from flightllm.cli.options import Board, Json
from flightllm.cli.output import print_json, table

__all__ = ["resources"]


def resources(
    board: Board = "tiny",
    synth: Annotated[
        bool, typer.Option("--synth", help="Synthesise the units with Yosys as well; takes long.")
    ] = False,
    json: Json = False,
) -> None:
    """DSPs, look-up tables, flip-flops and memories, in all and of each die."""
    from flightllm.hardware import as_config
    from flightllm.resources import resource_table, resource_units

    config = as_config(board)
    found = resource_table(config)
    if synth:
        from flightllm.synthesis import synthesised

        for kind, count in synthesised(config).items():
            found[kind]["synthesised"] = count
    if json:
        print_json({"board": config.name, **found})
        return
    columns = ["resource", "used", "available", "percent", "by die"]
    rows = [
        [kind, entry["used"], entry["available"] or "-", entry["percent"] or "-",
         ", ".join(str(die["percent"]) for die in entry.get("slrs", []))]
        for kind, entry in found.items()
    ]  # fmt: skip
    if synth:
        columns.append("synthesised")
        rows = [[*row, found[row[0]]["synthesised"]] for row in rows]
    table(columns, rows)
    for core, units in enumerate(resource_units(config)):
        print(f"\ncore {core}")
        table(
            ["unit", "dsp", "lut", "ff", "bram36", "uram"],
            [[unit, *map(round, counts.values())] for unit, counts in units.items()],
        )
