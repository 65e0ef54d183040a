"""`flightllm resources`: what a configuration takes of its device."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flightllm.cli.options import Board, Json
from flightllm.cli.output import print_json, progress_bar, table
from flightllm.resources import KINDS

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
    units = resource_units(config)
    made = None
    if synth:
        from flightllm.synthesis import synthesised

        with progress_bar() as progress:
            made = synthesised(config, progress)
        for kind in KINDS:
            found[kind]["synthesised"] = round(
                sum(counts[kind] for core in made for counts in core.values())
            )
    if json:
        print_json({"board": config.name, **found, "units": units, "units_synthesised": made})
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
    for core, modelled in enumerate(units):
        print(f"\ncore {core}")
        table(["unit", *_columns(made)], [
            [unit, *_counts(counts, made[core].get(unit) if made else None)]
            for unit, counts in modelled.items()
        ])  # fmt: skip


def _columns(made: Any) -> list[str]:
    return [name for kind in KINDS for name in ([kind, "synthesised"] if made else [kind])]


def _counts(counts: dict[str, float], made: dict[str, float] | None) -> list[int]:
    """Counts by kind, each with the synthesised one behind it where there is one."""
    pairs = [[counts[kind], made[kind]] if made else [counts[kind]] for kind in KINDS]
    return [round(value) for pair in pairs for value in pair]
