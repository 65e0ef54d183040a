"""Alveo cards: an RTL kernel for Vitis, linked to one HBM pseudo-channel a port.

Formats: Vitis application acceleration (UG1393): packaging RTL kernels, v++ configuration files.
"""

from __future__ import annotations

from flightllm.hw.boards.families import Alveo
from flightllm.hw.boards.package import XO
from flightllm.hw.boards.wrapper import CLOCK, PORT_CLOCK
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import INSTANCE, KERNEL, master_ports, wants_half_ports

__all__ = ["link_cfg", "make_rules", "memories", "slr_tcl"]


def memories(config: HwConfig, card: Alveo) -> tuple[str, ...]:
    """The pseudo-channel of each channel: its own, so that no port crosses the HBM's switch.

    Raises
    ------
    InputError
        When the card has fewer.
    """
    count = sum(config.channels)
    if count > card.banks:
        raise InputError(f"channels: {count} in all, the card has {card.banks} pseudo-channels")
    return tuple(f"HBM[{channel}]" for channel in range(count))


def link_cfg(config: HwConfig, card: Alveo) -> str:
    """link.cfg for v++: one instance, its ports' pseudo-channels, its clocks."""
    lines = ["[connectivity]", f"nk={KERNEL}:1:{INSTANCE}"]
    for port, bank in zip(master_ports(config), memories(config, card)):
        lines.append(f"sp={INSTANCE}.{port}:{bank}")
    clocks = {CLOCK: config.clock_mhz}
    if wants_half_ports(config):
        clocks[PORT_CLOCK] = config.memory.port_mhz
    lines += ["", "[clock]"]
    lines += [
        f"freqHz={round(mhz * 1e6)}:{INSTANCE}.{clock}" for clock, mhz in clocks.items()
    ]
    lines.append("")
    return "\n".join(lines)


def slr_tcl(config: HwConfig) -> str:
    """slr.tcl, run before placement: each core in its own SLR, what joins them beside core 0."""
    lines = [f"set top [get_cells -hierarchical -filter {{NAME =~ *{INSTANCE}*/top}}]"]
    for core in range(config.cores):
        cells = f"[get_cells -hierarchical -filter \"NAME =~ $top/core{core}\"]"
        lines.append(f"set_property USER_SLR_ASSIGNMENT SLR{core} {cells}")
    lines.append(
        "set_property USER_SLR_ASSIGNMENT SLR0"
        " [get_cells -hierarchical -filter \"NAME =~ $top/control\"]"
    )
    return "\n".join([*lines, ""])


def make_rules(config: HwConfig, card: Alveo) -> str:
    """The Makefile's rules from the project's files to build/NAME.xclbin."""
    return f"""\
PLATFORM ?= {card.platform}
VIVADO ?= vivado
VPP ?= v++

build/{XO}: package.tcl kernel.xml $(wildcard rtl/*.v)
\t$(VIVADO) -mode batch -nojournal -log build/package.log -source package.tcl

build/{config.name}.xclbin: build/{XO} link.cfg slr.tcl
\t$(VPP) --link --target hw --platform $(PLATFORM) --config link.cfg --save-temps \\
\t  --temp_dir build/temp --log_dir build/log --report_dir build/reports --report_level 2 \\
\t  --vivado.prop run.impl_1.STEPS.PLACE_DESIGN.TCL.PRE=$(CURDIR)/slr.tcl \\
\t  --output $@ build/{XO}
"""
