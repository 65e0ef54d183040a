"""A configuration's hardware as Verilog: one file for each unit, or one text."""

import re
from collections.abc import Mapping
from pathlib import Path

from amaranth.back import rtlil, verilog

from flightllm.hw.memory.ram import sources
from flightllm.hw.sharing import Library
from flightllm.hw.top import NAME, Top
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import wants_half_ports

__all__ = [
    "FILE_LIST", "LINT_WAIVERS", "TOP", "VENDOR_CELLS", "WAIVERS", "design_rtlil", "folder_files",
    "verilog_files", "verilog_text",
]  # fmt: skip

TOP = NAME
FILE_LIST = f"{NAME}.f"
WAIVERS = "lint.vlt"
LINT_WAIVERS = """\
`verilator_config
// Use: verilator --lint-only -Wall lint.vlt -f flightllm.f --top-module flightllm
// with vendor_cells.v behind lint.vlt where there is one.
//
// Yosys writes operators whose operands Verilog extends or cuts; Amaranth has checked the widths.
lint_off -rule WIDTHEXPAND
lint_off -rule WIDTHTRUNC
lint_off -rule ASCRANGE
// Comparisons that only some sizes of the hardware need.
lint_off -rule CMPCONST
lint_off -rule UNSIGNED
// A structure is one vector; not every module uses each of its fields.
lint_off -rule UNUSEDSIGNAL
lint_off -rule UNUSEDPARAM
// Cases are tried in order, and a register that none of them sets keeps its value.
lint_off -rule CASEINCOMPLETE
lint_off -rule CASEOVERLAP
// Registers have a value at power-up and a synchronous reset to the same.
lint_off -rule PROCASSINIT
// A file holds a unit and the modules that only it uses.
lint_off -rule DECLFILENAME
// A reset goes to the ports' other clock through flip-flops that it sets asynchronously.
lint_off -rule SYNCASYNCNET
// "interrupt" is the port's usual name.
lint_off -rule SYMRSVDWORD
// A chain leaves ports of AMD's multipliers open; their declarations have no contents.
lint_off -rule PINMISSING -file "*Cell.v"
lint_off -rule PINCONNECTEMPTY -file "*Cell.v"
lint_off -file "*vendor_cells.v"
"""
VENDOR_CELLS = Path(__file__).parent / "chain" / "vendor_cells.v"
"""Declarations of AMD's multipliers for lint; synthesis has its own."""

_MODULE = re.compile(r"^module (\w+).*?^endmodule$", re.MULTILINE | re.DOTALL)
# Nothing ever wakes such a block; in a simulator the constant would never be there.
_CONSTANT = re.compile(r"^  always @\*\n(?=    [^=]+ = \d+'h[0-9a-f]+;$)", re.MULTILINE)
_RTLIL_NAME = re.compile(r"^module \\(\S+)$", re.MULTILINE)
_RTLIL_USE = re.compile(r"^(module|  cell) \\(\S+)", re.MULTILINE)


def design_rtlil(config: HwConfig, **options: bool) -> str:
    """The design as RTLIL; names of modules are plain identifiers.

    Shallow memories of AMD's devices are modules of their own, unless it is for simulation.

    Parameters
    ----------
    options : see `Top`.
    """
    amd, modelled = config.dsp_kind != "inferred", options.get("modelled", False)
    library, top = Library(lut_rams=amd and not modelled), Top(config, **options)
    text = rtlil.convert(top, name=NAME, ports=top.ports(), platform=library, emit_src=False)
    text = "\n".join([*library.texts.values(), text])
    plain = {name: name.replace(".", "__").replace("$", "_") for name in _RTLIL_NAME.findall(text)}
    return _RTLIL_USE.sub(lambda use: f"{use[1]} \\{plain.get(use[2], use[2])}", text)


def verilog_text(config: HwConfig, **options: bool) -> str:
    """The whole design; its top module is `hw.top.NAME`.

    Parameters
    ----------
    options : see `Top`.
    """
    text: str = verilog._convert_rtlil_text(
        design_rtlil(config, **options), strip_internal_attrs=True
    )
    return _CONSTANT.sub(r"  initial\n", text) + "".join(sources(text).values())


def folder_files(config: HwConfig) -> Mapping[str, str]:
    """`verilog_files` with a file list, for tools that take `-f`, and what lint needs beside them:
    the waivers, and declarations of AMD's multipliers where there are any."""
    files = verilog_files(config)
    beside = {WAIVERS: LINT_WAIVERS}
    if config.dsp_kind != "inferred":
        beside[VENDOR_CELLS.name] = VENDOR_CELLS.read_text(encoding="utf-8")
    return {FILE_LIST: "\n".join(sorted(files)) + "\n", **beside, **files}


def verilog_files(config: HwConfig) -> Mapping[str, str]:
    """The design by file name; a file holds one unit and the modules only it has.

    Memory ports are the board's own, half as wide as a channel where those are.
    """
    files: dict[str, list[str]] = {}
    text = verilog_text(config, half_ports=wants_half_ports(config))
    for match in _MODULE.finditer(text):
        owner = match[1].split("__")[0]
        files.setdefault(owner, []).append(match[0])
    files |= {name: [memory.rstrip()] for name, memory in sources(text).items()}
    return {f"{name}.v": "\n\n".join(modules) + "\n" for name, modules in files.items()}
