"""Zynq and Zynq UltraScale+ boards: a block design around the processing system.

Configuration names: PG201 (Zynq UltraScale+ MPSoC Processing System), PG082 (Processing System 7).
"""

from __future__ import annotations

from flightllm.hw.boards.families import Zynq
from flightllm.hw.boards.tcl import Design
from flightllm.hw.boards.wrapper import CLOCK, INTERRUPT, PORT_CLOCK, PORT_RESET, RESET
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import (
    CONTROL_PORT,
    INSTANCE,
    VLNV,
    master_ports,
    port_bytes,
    wants_half_ports,
)
from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["design_tcl", "memories"]

SMARTCONNECT = "xilinx.com:ip:smartconnect"
REGISTERS = {True: 0xA000_0000, False: 0x43C0_0000}
"""Where the accelerator's registers lie, by whether it is an UltraScale+: behind HPM0 or GP0."""


def memories(config: HwConfig, chip: Zynq) -> tuple[str, ...]:
    """Every channel is a buffer in the processing system's memory.

    Raises
    ------
    InputError
        When there are more channels than ports.
    """
    count = sum(config.channels)
    if count > chip.ports:
        raise InputError(
            f"channels: {count} in all, the processing system has {chip.ports} ports for them"
        )
    return ("",) * count


def _ultrascale(config: HwConfig) -> dict[str, object]:
    out: dict[str, object] = {
        "PSU__USE__M_AXI_GP0": 1, "PSU__USE__M_AXI_GP1": 0, "PSU__USE__M_AXI_GP2": 0,
        "PSU__MAXIGP0__DATA_WIDTH": 32, "PSU__USE__IRQ0": 1, "PSU__FPGA_PL0_ENABLE": 1,
        "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": f"{config.clock_mhz:g}",
        "PSU__FPGA_PL1_ENABLE": 1,
        "PSU__CRL_APB__PL1_REF_CTRL__FREQMHZ": f"{config.memory.port_mhz:g}",
    }  # fmt: skip
    for port in range(sum(config.channels)):  # S_AXI_HP0_FPD is SAXIGP2, and so on
        out[f"PSU__USE__S_AXI_GP{port + 2}"] = 1
        out[f"PSU__SAXIGP{port + 2}__DATA_WIDTH"] = config.memory.port_bits
    return out


def _seven(config: HwConfig) -> dict[str, object]:
    out: dict[str, object] = {
        "PCW_USE_M_AXI_GP0": 1, "PCW_USE_FABRIC_INTERRUPT": 1, "PCW_IRQ_F2P_INTR": 1,
        "PCW_EN_CLK0_PORT": 1, "PCW_FPGA0_PERIPHERAL_FREQMHZ": f"{config.clock_mhz:g}",
        "PCW_EN_CLK1_PORT": 1, "PCW_FPGA1_PERIPHERAL_FREQMHZ": f"{config.memory.port_mhz:g}",
    }  # fmt: skip
    for port in range(sum(config.channels)):
        out[f"PCW_USE_S_AXI_HP{port}"] = 1
        out[f"PCW_S_AXI_HP{port}_DATA_WIDTH"] = config.memory.port_bits
    return out


def _system(design: Design, config: HwConfig, chip: Zynq) -> tuple[str, str]:
    """The processing system; gives its clock and reset pins."""
    kind = "zynq_ultra_ps_e" if chip.ultrascale else "processing_system7"
    design.cell("ps", f"xilinx.com:ip:{kind}")
    made = 'apply_board_preset "1"' if chip.ultrascale else (
        'make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"'
    )  # fmt: skip
    design.command(
        f"apply_bd_automation -rule xilinx.com:bd_rule:{kind} -config {{{made}}} [get_bd_cells ps]"
    )
    design.configure("[get_bd_cells ps]", (_ultrascale if chip.ultrascale else _seven)(config))
    return ("ps/pl_clk0", "ps/pl_resetn0") if chip.ultrascale else (
        "ps/FCLK_CLK0", "ps/FCLK_RESET0_N"
    )  # fmt: skip


def _port(chip: Zynq, number: int) -> tuple[str, str]:
    """A high-performance port's interface and clock pins."""
    if chip.ultrascale:
        return f"ps/S_AXI_HP{number}_FPD", f"ps/saxihp{number}_fpd_aclk"
    return f"ps/S_AXI_HP{number}", f"ps/S_AXI_HP{number}_ACLK"


def _clocks(chip: Zynq) -> tuple[str, str]:
    """Pins of the processing system's clocks: the core's, and the ports'."""
    return ("ps/pl_clk0", "ps/pl_clk1") if chip.ultrascale else ("ps/FCLK_CLK0", "ps/FCLK_CLK1")


def _channel(design: Design, config: HwConfig, chip: Zynq, number: int, master: str) -> None:
    """One channel to its port, through a converter where width, clock or protocol still differ."""
    interface, clock_pin = _port(chip, number)
    half = wants_half_ports(config)
    core, other = _clocks(chip)
    mine = other if half else core
    clock = mine if half or config.memory.port_mhz == config.clock_mhz else other
    if chip.ultrascale and mine == clock and 8 * port_bytes(config) == chip.port_bits:
        design.join(f"{INSTANCE}/{master}", interface)
        design.net(clock, clock_pin)
        return
    name = f"convert{number}"
    clocks = {"NUM_CLKS": 1 if mine == clock else 2}
    design.cell(name, SMARTCONNECT, {"NUM_SI": 1, "NUM_MI": 1, **clocks})
    design.join(f"{INSTANCE}/{master}", f"{name}/S00_AXI")
    design.join(f"{name}/M00_AXI", interface)
    design.net(mine, f"{name}/aclk")
    design.net(clock, clock_pin, *([] if mine == clock else [f"{name}/aclk1"]))
    design.net(f"{'port_' if half else ''}reset/interconnect_aresetn", f"{name}/aresetn")


def _port_domain(design: Design, chip: Zynq, reset: str) -> None:
    """The clock and reset of masters that have a domain of their own."""
    design.cell("port_reset", "xilinx.com:ip:proc_sys_reset")
    design.net(_clocks(chip)[1], f"{INSTANCE}/{PORT_CLOCK}", "port_reset/slowest_sync_clk")
    design.net(reset, "port_reset/ext_reset_in")
    design.net("port_reset/peripheral_aresetn", f"{INSTANCE}/{PORT_RESET}")


def design_tcl(config: HwConfig, chip: Zynq) -> str:
    """design.tcl: the block design."""
    memories(config, chip)
    design = Design("system")
    clock, reset = _system(design, config, chip)
    design.cell(INSTANCE, VLNV)
    design.cell("reset", "xilinx.com:ip:proc_sys_reset")
    design.cell("control", SMARTCONNECT, {"NUM_SI": 1, "NUM_MI": 1})
    master, master_clock = (
        ("ps/M_AXI_HPM0_FPD", "ps/maxihpm0_fpd_aclk")
        if chip.ultrascale
        else ("ps/M_AXI_GP0", "ps/M_AXI_GP0_ACLK")
    )
    design.net(clock, f"{INSTANCE}/{CLOCK}", "reset/slowest_sync_clk", "control/aclk", master_clock)
    design.net(reset, "reset/ext_reset_in")
    design.net("reset/peripheral_aresetn", f"{INSTANCE}/{RESET}")
    design.net("reset/interconnect_aresetn", "control/aresetn")
    design.join(master, "control/S00_AXI")
    design.join("control/M00_AXI", f"{INSTANCE}/{CONTROL_PORT}")
    design.net(f"{INSTANCE}/{INTERRUPT}", "ps/pl_ps_irq0" if chip.ultrascale else "ps/IRQ_F2P")
    if wants_half_ports(config):
        _port_domain(design, chip, reset)
    for number, name in enumerate(master_ports(config)):
        _channel(design, config, chip, number, name)
    design.address(
        "ps/Data", f"{INSTANCE}/{CONTROL_PORT}/reg0", REGISTERS[chip.ultrascale], 1 << ADDRESS_BITS
    )
    design.command("assign_bd_address")  # the channels' view of the processing system's memory
    return design.text()
