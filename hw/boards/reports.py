"""Utilisation and timing out of the tools' reports, in the terms of the resource table."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

__all__ = ["Timing", "nextpnr", "read", "timing", "utilisation"]

_ROWS = {
    "dsp": ("DSPs", "DSP Slices"),
    "lut": ("CLB LUTs", "Slice LUTs", "Registers and LUTs LUTs"),
    "ff": ("CLB Registers", "Slice Registers", "Registers"),
    "bram36": ("Block RAM Tile",),
    "uram": ("URAM",),
}
"""Names of the rows in `report_utilization`, by kind; they differ between families."""


def utilisation(text: str) -> dict[str, dict[str, float]]:
    """`used` and `available` of each kind that the report names.

    Parameters
    ----------
    text : of `report_utilization`.
    """
    found: dict[str, dict[str, float]] = {}
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 3 or not line.lstrip().startswith("|"):
            continue
        if "Used" in cells and "Available" in cells:
            columns = cells
            continue
        name = cells[0].rstrip("*")
        for kind, names in _ROWS.items():
            if kind not in found and name in names and len(cells) == len(columns):
                found[kind] = {
                    "used": float(cells[columns.index("Used")]),
                    "available": float(cells[columns.index("Available")]),
                }
    return found


@dataclass(frozen=True)
class Timing:
    """The worst setup and hold slack, ns; a design meets its clock when neither is negative.

    Parameters
    ----------
    hold : None where the tool checks setup alone.
    mhz : the highest frequency of the slowest clock, where the tool names it.
    """

    setup: float
    hold: float | None
    mhz: float | None = None

    @property
    def met(self) -> bool:
        """Whether every path meets its constraint."""
        return self.setup >= 0 and (self.hold is None or self.hold >= 0)


def timing(text: str) -> Timing | None:
    """The design timing summary of `report_timing_summary`, None where there is none."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        # Endpoint counts have headings of three words over one value each.
        heads = re.sub(r"(\w+) (Failing|Total) Endpoints", r"\1\2", line).split()
        if {"WNS(ns)", "WHS(ns)"} <= set(heads):
            rows = [row.split() for row in lines[place + 1 : place + 4]]
            for row in rows:
                if row and re.fullmatch(r"-?\d+\.\d+", row[0]):
                    setup, hold = heads.index("WNS(ns)"), heads.index("WHS(ns)")
                    return Timing(float(row[setup]), float(row[hold]))
    return None


_NEXTPNR = {
    "dsp": ("MULT18X18D", 1), "lut": ("TRELLIS_COMB", 1), "ff": ("TRELLIS_FF", 1),
    "bram36": ("DP16KD", 0.5),
}  # fmt: skip
"""Cells of an ECP5 by kind, and how many of the kind each is."""


def nextpnr(text: str) -> tuple[dict[str, dict[str, float]], Timing]:
    """Utilisation and timing out of nextpnr's report for ECP5.

    Parameters
    ----------
    text : of `--report`, JSON.
    """
    report = json.loads(text)
    found = {
        kind: {name: share * report["utilization"][cell][name] for name in ("used", "available")}
        for kind, (cell, share) in _NEXTPNR.items()
    }
    slowest = min(
        report["fmax"].values(), key=lambda clock: clock["achieved"] / clock["constraint"]
    )
    slack = 1000 / slowest["constraint"] - 1000 / slowest["achieved"]
    return found, Timing(round(slack, 3), None, round(slowest["achieved"], 2))


def read(used: str, slack: str) -> tuple[dict[str, dict[str, float]], Timing | None]:
    """Utilisation and timing, whichever tool wrote the two texts."""
    if used.startswith("{"):
        return nextpnr(used)
    return utilisation(used), timing(slack)
