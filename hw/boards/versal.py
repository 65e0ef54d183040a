"""Versal boards: control, interfaces and processing system, the network on chip, and its memory.

Configuration names: PG313 (Versal network on chip and memory controllers), PG352 (CIPS).
"""

from __future__ import annotations

from flightllm.hw.boards.families import Versal
from flightllm.hw.boards.tcl import Design
from flightllm.hw.boards.wrapper import CLOCK, INTERRUPT, PORT_CLOCK, PORT_RESET, RESET
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.handoff import CONTROL_PORT, INSTANCE, VLNV, master_ports, wants_half_ports
from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["HBM_BASE", "HBM_PORTS", "design_tcl", "hbm_port", "memories"]

HBM_PORTS = 64
"""Four ports on each of 16 controllers; ports 0 and 1 reach pseudo-channel 0, 2 and 3 the other."""
HBM_BASE = 0x40_0000_0000
REGISTERS = {"ps": 0xA400_0000, "pcie": 0x201_0000_0000}
"""Where the registers lie: behind M_AXI_FPD of the processing system, or behind the network."""
DDR_PORTS = 2
SMARTCONNECT = "xilinx.com:ip:smartconnect"
PS_MASTERS = (
    *((f"FPD_CCI_NOC_{i}", "ps_cci", f"fpd_cci_noc_axi{i}_clk") for i in range(4)),
    ("LPD_AXI_NOC_0", "ps_rpu", "lpd_axi_noc_clk"),
    ("PMC_NOC_AXI_0", "ps_pmc", "pmc_axi_noc_axi0_clk"),
)
"""Masters of the processing system on the network: interface, category, clock."""
PCIE_MASTERS = tuple(
    (f"CPM_PCIE_NOC_{i}", "ps_pcie", f"cpm_pcie_noc_axi{i}_clk") for i in range(2)
) + (PS_MASTERS[-1],)


def hbm_port(channel: int) -> tuple[str, str]:
    """A channel's port of the HBM controllers, and the pseudo-channel behind it."""
    controller, port = divmod(channel, 4)
    return f"HBM{controller}_PORT{port}", f"HBM{controller}_PC{port // 2}"


def memories(config: HwConfig, chip: Versal) -> tuple[str, ...]:
    """The memory of each channel, as the hardware hand-off names it.

    Raises
    ------
    InputError
        When there are more channels than ports.
    """
    count, limit = sum(config.channels), HBM_PORTS if chip.memory == "hbm" else 6
    if count > limit:
        raise InputError(f"channels: {count} in all, the network on chip has {limit} ports to them")
    if chip.memory == "hbm":
        return tuple(f"noc/{hbm_port(channel)[1]}" for channel in range(count))
    return tuple("" if channel < DDR_PORTS else "lpddr" for channel in range(count))


def _flow(mbytes: int) -> str:
    return (
        f"{{read_bw {{{mbytes}}} write_bw {{{mbytes // 8}}} read_avg_burst {{16}}"
        " write_avg_burst {4}}"
    )


def _host(design: Design, config: HwConfig, chip: Versal) -> tuple[tuple[str, str, str], ...]:
    """CIPS; gives the masters that it puts on the network."""
    ps = {
        "DESIGN_MODE": 1, "PMC_USE_PMC_NOC_AXI0": 1, "PS_NUM_FABRIC_RESETS": 1,
        "PS_USE_PMCPL_CLK0": 1, "PMC_CRP_PL0_REF_CTRL_FREQMHZ": f"{config.clock_mhz:g}",
        "PS_USE_PMCPL_CLK1": 1, "PMC_CRP_PL1_REF_CTRL_FREQMHZ": f"{config.memory.port_mhz:g}",
    }  # fmt: skip
    if chip.host == "ps":
        ps |= {
            "DDR_MEMORY_MODE": "{Connectivity to DDR via NoC}", "PS_USE_FPD_CCI_NOC": 1,
            "PS_USE_NOC_LPD_AXI0": 1, "PS_USE_M_AXI_FPD": 1, "PS_M_AXI_FPD_DATA_WIDTH": 32,
            "PS_IRQ_USAGE": "{{CH0 1} {CH1 0}}",
        }  # fmt: skip
    config_text = " ".join(f"{name} {value}" for name, value in ps.items())
    values = {"PS_PMC_CONFIG": config_text}
    if chip.host == "pcie":
        values["CPM_CONFIG"] = (
            "CPM_PCIE1_MODES DMA CPM_PCIE1_FUNCTIONAL_MODE QDMA CPM_PCIE1_MODE_SELECTION Advanced"
            " CPM_PCIE1_MAX_LINK_SPEED 32.0_GT/s CPM_PCIE1_PL_LINK_CAP_MAX_LINK_WIDTH X8"
            " CPM_PCIE1_DMA_INTF AXI4MM CPM_PCIE1_PF0_BAR2_QDMA_AXCACHE 0"
            f" CPM_PCIE1_PF0_PCIEBAR2AXIBAR_QDMA_2 {REGISTERS['pcie']:#x}"
        )
    design.cell("cips", "xilinx.com:ip:versal_cips")
    if chip.board:
        design.command(
            "apply_bd_automation -rule xilinx.com:bd_rule:cips -config {board_preset {Yes}"
            " boot_config {Custom} configure_noc {None} debug_config {JTAG} design_flow"
            " {Full System} mc_type {None} num_mc_ddr {None} num_mc_lpddr {None} pl_clocks {None}"
            " pl_resets {None}} [get_bd_cells cips]"
        )
    design.configure("[get_bd_cells cips]", values)
    return PS_MASTERS if chip.host == "ps" else PCIE_MASTERS


def _network(design: Design, config: HwConfig, chip: Versal,
             masters: tuple[tuple[str, str, str], ...]) -> None:  # fmt: skip
    """The network on chip: the host's masters, the channels' ports, the memory controllers."""
    count = sum(config.channels)
    hbm = chip.memory == "hbm"
    host = len(masters)
    inputs = host if hbm else host + DDR_PORTS
    values: dict[str, object] = {
        "NUM_SI": inputs, "NUM_MI": int(chip.host == "pcie"), "NUM_CLKS": host + 2,
    }  # fmt: skip
    if hbm:
        values |= {
            "HBM_NUM_CHNL": 16, "NUM_HBM_BLI": count, "HBM_REF_CLK_SELECTION": "Internal",
        }  # fmt: skip
        values |= {} if chip.host == "pcie" else _ddr4()
    else:
        values |= _ddr4() | {"NUM_NMI": 1}
    design.cell("noc", "xilinx.com:ip:axi_noc", values)
    everything = (
        [hbm_port(channel)[0] for channel in range(0, count, 2)] if hbm else ["M00_INI"]
    )
    if chip.host == "pcie":
        everything.append("M00_AXI")
    else:
        everything.append("MC_0")
    for number, (interface, category, clock) in enumerate(masters):
        flows = " ".join(f"{target} {_flow(400)}" for target in everything)
        pin = f"noc/S{number:02d}_AXI"
        design.pin(pin, {"CATEGORY": category, "CONNECTIONS": flows})
        design.join(f"cips/{interface}", pin)
        design.net(f"cips/{clock}", f"noc/aclk{number}")
        design.configure(
            f"[get_bd_pins noc/aclk{number}]", {"ASSOCIATED_BUSIF": f"S{number:02d}_AXI"}
        )
    if chip.host == "pcie":
        design.pin("noc/M00_AXI", {"CATEGORY": "pl", "APERTURES":
                   f"{{{REGISTERS['pcie']:#x} {1 << ADDRESS_BITS:#x}}}"})  # fmt: skip


def _ddr4() -> dict[str, object]:
    """The board's DDR4 for Linux, by the names of its board files."""
    return {
        "NUM_MC": 1, "NUM_MCP": 4, "CH0_DDR4_0_BOARD_INTERFACE": "ddr4_dimm1",
        "sys_clk0_BOARD_INTERFACE": "ddr4_dimm1_sma_clk", "MC_CHAN_REGION1": "DDR_LOW1",
    }  # fmt: skip


def _lpddr(design: Design) -> None:
    """VCK190's two LPDDR4 controllers, interleaved, as one memory."""
    design.cell("lpddr", "xilinx.com:ip:axi_noc", {
        "NUM_SI": 4, "NUM_MI": 0, "NUM_NSI": 1, "NUM_CLKS": 1, "NUM_MC": 2, "NUM_MCP": 4,
        "MC_CHAN_REGION0": "DDR_CH1",
        "CH0_LPDDR4_0_BOARD_INTERFACE": "ch0_lpddr4_c0",
        "CH1_LPDDR4_0_BOARD_INTERFACE": "ch1_lpddr4_c0",
        "CH0_LPDDR4_1_BOARD_INTERFACE": "ch0_lpddr4_c1",
        "CH1_LPDDR4_1_BOARD_INTERFACE": "ch1_lpddr4_c1",
        "sys_clk0_BOARD_INTERFACE": "lpddr4_sma_clk1",
        "sys_clk1_BOARD_INTERFACE": "lpddr4_sma_clk2",
    })  # fmt: skip
    design.join("noc/M00_INI", "lpddr/S00_INI")
    design.pin("lpddr/S00_INI", {"CONNECTIONS": f"MC_0 {_flow(400)}"})


def _target(chip: Versal, channel: int, host: int) -> tuple[str, str, str]:
    """Interface, controller port and category of a channel's place on the network."""
    if chip.memory == "hbm":
        return f"noc/HBM{channel:02d}_AXI", hbm_port(channel)[0], "pl_hbm"
    if channel < DDR_PORTS:
        return f"noc/S{host + channel:02d}_AXI", f"MC_{channel + 1}", "pl"
    return f"lpddr/S{channel - DDR_PORTS:02d}_AXI", f"MC_{channel - DDR_PORTS}", "pl"


def _channels(design: Design, config: HwConfig, chip: Versal, host: int) -> None:
    """Each channel to its place on the network: by itself where the top brings it to the port's
    width and clock, else through a converter."""
    bandwidth = round(config.memory.port_bits / 8 * config.memory.port_mhz)
    clocked: dict[str, list[str]] = {}
    for channel, master in enumerate(master_ports(config)):
        pin, port, category = _target(chip, channel, host)
        if wants_half_ports(config):
            design.join(f"{INSTANCE}/{master}", pin)
        else:
            _convert(design, f"convert{channel:02d}", f"{INSTANCE}/{master}", pin)
        design.pin(pin, {"CATEGORY": category, "CONNECTIONS": f"{port} {_flow(bandwidth)}"})
        network, _, interface = pin.partition("/")
        clocked.setdefault(network, []).append(interface)
    for network, interfaces in clocked.items():
        clock = f"{network}/aclk{host if network == 'noc' else 0}"
        design.net("cips/pl1_ref_clk", clock)
        design.configure(f"[get_bd_pins {clock}]", {"ASSOCIATED_BUSIF": ":".join(interfaces)})


def _convert(design: Design, name: str, master: str, pin: str) -> None:
    design.cell(name, SMARTCONNECT, {"NUM_SI": 1, "NUM_MI": 1, "NUM_CLKS": 2})
    design.net("cips/pl0_ref_clk", f"{name}/aclk")
    design.net("cips/pl1_ref_clk", f"{name}/aclk1")
    design.net("reset/interconnect_aresetn", f"{name}/aresetn")
    design.join(master, f"{name}/S00_AXI")
    design.join(f"{name}/M00_AXI", pin)


def _port_domain(design: Design) -> None:
    """The clock and reset of masters that have a domain of their own."""
    design.cell("port_reset", "xilinx.com:ip:proc_sys_reset")
    design.net("cips/pl1_ref_clk", f"{INSTANCE}/{PORT_CLOCK}", "port_reset/slowest_sync_clk")
    design.net("cips/pl0_resetn", "port_reset/ext_reset_in")
    design.net("port_reset/peripheral_aresetn", f"{INSTANCE}/{PORT_RESET}")


def _control(design: Design, chip: Versal, host: int) -> None:
    design.cell("control", SMARTCONNECT, {"NUM_SI": 1, "NUM_MI": 1})
    source = "cips/M_AXI_FPD" if chip.host == "ps" else "noc/M00_AXI"
    design.join(source, "control/S00_AXI")
    design.join("control/M00_AXI", f"{INSTANCE}/{CONTROL_PORT}")
    clocks = [f"{INSTANCE}/{CLOCK}", "reset/slowest_sync_clk", "control/aclk"]
    last = f"noc/aclk{host + 1}"
    design.net("cips/pl0_ref_clk", *clocks, last)
    if chip.host == "ps":
        design.net("cips/pl0_ref_clk", "cips/m_axi_fpd_aclk")
        design.net(f"{INSTANCE}/{INTERRUPT}", "cips/pl_ps_irq0")
    else:
        design.configure(f"[get_bd_pins {last}]", {"ASSOCIATED_BUSIF": "M00_AXI"})
    design.net("cips/pl0_resetn", "reset/ext_reset_in")
    design.net("reset/peripheral_aresetn", f"{INSTANCE}/{RESET}")
    design.net("reset/interconnect_aresetn", "control/aresetn")


def design_tcl(config: HwConfig, chip: Versal) -> str:
    """design.tcl: the block design."""
    memories(config, chip)
    design = Design("system")
    masters = _host(design, config, chip)
    host = len(masters)
    design.cell(INSTANCE, VLNV)
    design.cell("reset", "xilinx.com:ip:proc_sys_reset")
    if wants_half_ports(config):
        _port_domain(design)
    _network(design, config, chip, masters)
    if chip.memory == "ddr":
        _lpddr(design)
    _channels(design, config, chip, host)
    _control(design, chip, host)
    space = f"cips/{'M_AXI_FPD' if chip.host == 'ps' else masters[0][0]}"
    segment = f"{INSTANCE}/{CONTROL_PORT}/reg0"
    design.address(space, segment, REGISTERS[chip.host], 1 << ADDRESS_BITS)
    if chip.memory == "hbm":
        _hbm_addresses(design, config)
    design.command("assign_bd_address")
    return design.text()


def _hbm_addresses(design: Design, config: HwConfig) -> None:
    """Each channel sees the pseudo-channel behind its port, at the device's own address of it."""
    size = 2 * config.channel_bytes  # two ports share a pseudo-channel
    for channel, master in enumerate(master_ports(config)):
        segment = f"noc/HBM{channel:02d}_AXI/{hbm_port(channel)[1]}"
        design.address(f"{INSTANCE}/{master}", segment, HBM_BASE + channel // 2 * size, size)
