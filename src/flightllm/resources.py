"""What a configuration takes of its device, kind by kind and die by die."""

from __future__ import annotations

import math
from typing import Any

from flightllm.spec.config import HwConfig

__all__ = ["KINDS", "excess", "resource_table", "resource_units"]

KINDS = ("dsp", "lut", "ff", "bram36", "uram")


def resource_units(config: HwConfig) -> list[dict[str, dict[str, float]]]:
    """For each core, each unit's resources by kind."""
    from flightllm.hw.resources import core_resources

    return [
        {
            unit: {kind: float(getattr(found, kind)) for kind in KINDS}
            for unit, found in core_resources(config, core).items()
        }
        for core in range(config.cores)
    ]


def resource_table(config: HwConfig) -> dict[str, Any]:
    """`used`, `available` and `percent` by kind, of the whole device and `slrs`, of each die.

    `available` is what the shell leaves; None where the configuration does not say. A core stands
    in the die of its number.
    """
    units = resource_units(config)
    table: dict[str, Any] = {}
    for kind in KINDS:
        used = [math.ceil(sum(unit[kind] for unit in core.values())) for core in units]
        there = [getattr(slr, kind) for slr in config.slrs] or [None] * len(used)
        dies = [_share(mine, room) for mine, room in zip(used, there)]
        room = sum(getattr(slr, kind) for slr in config.slrs)
        whole = _share(sum(used), room or None)
        table[kind] = {**whole, "slrs": dies} if len(dies) > 1 else whole
    return table


def excess(config: HwConfig) -> str | None:
    """A sentence on what the model says is not there, by die; None where everything fits."""
    over = [
        f"{share['percent']:.0f} % of the {kind.upper()} of die {die}"
        for kind, entry in resource_table(config).items()
        for die, share in enumerate(entry.get("slrs", [entry]))
        if (share["percent"] or 0) > 100
    ]
    return f"{config.name} takes {', '.join(over)} (modelled): it will not fit" if over else None


def _share(used: int, available: int | None) -> dict[str, Any]:
    percent = round(100 * used / available, 1) if available else None
    return {"used": used, "available": available, "percent": percent}
