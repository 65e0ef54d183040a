"""package.tcl: the Verilog as a packaged IP, whose VLNV is what PYNQ binds its driver by."""

from __future__ import annotations

from flightllm.hw.boards.wrapper import (
    CLOCK,
    INTERRUPT,
    PORT_CLOCK,
    PORT_RESET,
    RESET,
    WRAPPER,
    clock_of_ports,
)
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import CONTROL_PORT, KERNEL, VLNV, master_ports, wants_half_ports
from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["XO", "package_tcl"]

XO = f"{KERNEL}.xo"


def package_tcl(config: HwConfig, kernel: bool) -> str:
    """The script; run it in the project's folder with `vivado -mode batch -source package.tcl`.

    Parameters
    ----------
    kernel : also make a Vitis kernel, `XO`, from kernel.xml.
    """
    vendor, library, name, version = VLNV.split(":")
    lines = [
        f"create_project -force package build/package -part {config.part}",
        "add_files [glob rtl/*.v]",
        f"set_property top {WRAPPER} [current_fileset]",
        "update_compile_order -fileset sources_1",
        f"ipx::package_project -root_dir build/ip -vendor {vendor} -library {library}"
        " -taxonomy /FlightLLM -import_files -set_current true -force",
        "set core [ipx::current_core]",
        f"set_property name {name} $core",
        f"set_property version {version} $core",
        f"set_property display_name {{FlightLLM {config.name}}} $core",
        "set_property supported_families {} $core",
        "set_property auto_family_support_level level_2 $core",
        f"ipx::infer_bus_interface {INTERRUPT} xilinx.com:signal:interrupt_rtl:1.0 $core",
        f"ipx::associate_bus_interfaces -clock {CLOCK} -reset {RESET} $core",
    ]  # fmt: skip
    if wants_half_ports(config):
        lines.append(f"ipx::associate_bus_interfaces -clock {PORT_CLOCK} -reset {PORT_RESET} $core")
    clocks = {CONTROL_PORT: CLOCK, **dict.fromkeys(master_ports(config), clock_of_ports(config))}
    lines += [
        f"ipx::associate_bus_interfaces -busif {port} -clock {clock} $core"
        for port, clock in clocks.items()
    ]
    lines += [
        f"set map [ipx::get_memory_maps {CONTROL_PORT} -of_objects $core]",
        f"set_property range {1 << ADDRESS_BITS} [ipx::get_address_blocks reg0 -of_objects $map]",
    ]
    if kernel:
        lines += ["set_property sdx_kernel true $core", "set_property sdx_kernel_type rtl $core"]
    lines += [
        "ipx::create_xgui_files $core", "ipx::update_checksums $core", "ipx::save_core $core",
        "close_project",
    ]  # fmt: skip
    if kernel:
        lines += [
            f"file delete -force build/{XO}",
            f"package_xo -xo_path build/{XO} -kernel_name {KERNEL} -ip_directory build/ip"
            " -kernel_xml kernel.xml",
        ]
    return "\n".join([*lines, ""])
