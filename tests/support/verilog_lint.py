"""Verilator's lint of a folder of Verilog: of the whole of it, or one unit at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flightllm.hw.memory.ram import MODULE
from flightllm.hw.verilog import WAIVERS
from flightllm.sim.rtl import toolchain

__all__ = ["lint", "lint_in_parts"]

PORT = re.compile(r"^  (?:input|output) .*;$", re.MULTILINE)
SHELLS = "shells.v"


def lint(folder: Path, top: str, sources: Sequence[str | Path], *options: str) -> None:
    """As the waivers' first line says.

    Parameters
    ----------
    sources : paths from `folder`, or what else names sources on the command line.
    """
    command = ["--lint-only", "-Wall", *options, WAIVERS, *sources, "--top-module", top]
    toolchain.call([toolchain._package() / "bin" / "verilator_bin", *command], folder)


def lint_in_parts(folder: Path, cells: Sequence[str | Path], *options: str) -> int:
    """The same for each unit alone, with no more of the others than their ports: for the whole of
    a large design Verilator needs 16 GB. Returns the number of units.

    Parameters
    ----------
    cells : files with declarations of a vendor's cells.
    """
    shells = {}
    for path in folder.glob("*.v"):
        text = path.read_text().split("endmodule", 1)[0]
        if re.match(rf"module {path.stem} ?\(", text):
            header = text[: text.index(";") + 1]
            shells[path.stem] = "\n".join([header, *PORT.findall(text), "endmodule"])
    try:
        for unit in shells:
            others = [text for name, text in shells.items() if name != unit]
            quiet = "/* verilator lint_off UNDRIVEN */"  # its contents are not here
            (folder / SHELLS).write_text("\n".join([quiet, *others, ""]))
            lint(folder, unit, [*cells, SHELLS, f"{unit}.v", f"{MODULE}.v"], *options)
    finally:
        (folder / SHELLS).unlink(missing_ok=True)
    return len(shells)
