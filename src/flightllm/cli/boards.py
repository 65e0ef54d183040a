"""`flightllm boards`: the hardware configurations there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flightllm.cli.options import Json
from flightllm.cli.output import facts, print_json, table
from flightllm.spec.config import HwConfig, load_config, preset_names

__all__ = ["boards"]

boards = typer.Typer(help="List hardware configurations, or show one.")


def _summary(config: HwConfig) -> dict[str, Any]:
    channels = sum(config.channels)
    return {
        "name": config.name,
        "part": config.part,
        "cores": config.cores,
        "channels": channels,
        "macs": channels * config.macs_per_channel,
        "clock_mhz": config.clock_mhz,
        "memory": config.memory.kind,
        "memory_mib": channels * config.memory.channel_mib,
        "peak_gb_s": config.memory.peak_gb_s,
    }


@boards.callback(invoke_without_command=True)
def list_boards(context: typer.Context, json: Json = False) -> None:
    """List hardware configurations, or show one."""
    if context.invoked_subcommand is not None:
        return
    found = [_summary(load_config(name)) for name in preset_names()]
    if json:
        print_json({"boards": found})
    else:
        table(list(found[0]), [list(board.values()) for board in found])


@boards.command()
def show(
    board: Annotated[str, typer.Argument(metavar="NAME", help="Preset name or .toml file.")],
    json: Json = False,
) -> None:
    """Show every field of one configuration."""
    config = load_config(board)
    values = {**config.to_dict(), "digest": config.digest}
    if json:
        print_json(values)
        return
    memory = {f"memory.{name}": value for name, value in values.pop("memory").items()}
    dies = values.pop("slrs")
    slrs = {
        f"slr{place}": ", ".join(f"{count:,} {kind}" for kind, count in die.items())
        for place, die in enumerate(dies)
    }
    values["channels"] = ", ".join(map(str, values["channels"]))
    facts({**values, **memory, **slrs})
