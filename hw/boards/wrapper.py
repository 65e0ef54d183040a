"""The Verilog around the top: the clock, reset and port names that AMD's tools expect."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.lib import wiring

from flightllm.hw.control import lite_signature
from flightllm.hw.memory.axi import channel_signature
from flightllm.hw.top import ADDRESS_BITS, NAME
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import CONTROL_PORT, master_ports, port_bytes, wants_half_ports

__all__ = [
    "CLOCK", "INTERRUPT", "PORT_CLOCK", "PORT_RESET", "RESET", "WRAPPER", "clock_of_ports", "ports",
    "wrapper_verilog",
]  # fmt: skip

WRAPPER = f"{NAME}_kernel"
"""The wrapper's module."""
CLOCK, RESET, INTERRUPT = "ap_clk", "ap_rst_n", "interrupt"
PORT_CLOCK, PORT_RESET = "ap_clk_2", "ap_rst_n_2"
"""Of the masters, where they have a domain of their own; Vitis' names for a second clock."""


def clock_of_ports(config: HwConfig) -> str:
    """The clock of the masters."""
    return PORT_CLOCK if wants_half_ports(config) else CLOCK


def _interface(prefix: str, signature: wiring.Signature, master: bool) -> Iterator[tuple]:
    for name, member in signature.members.items():
        width = member.shape if isinstance(member.shape, int) else len(member.shape)
        output = (member.flow == wiring.Out) == master
        yield f"{prefix}_{name}", width, output


def ports(config: HwConfig) -> list[tuple[str, int, bool]]:
    """(name, bits, whether it is an output) of every port of the wrapper."""
    out = [(CLOCK, 1, False), (RESET, 1, False), (INTERRUPT, 1, True)]
    if wants_half_ports(config):
        out += [(PORT_CLOCK, 1, False), (PORT_RESET, 1, False)]
    out += _interface(CONTROL_PORT, lite_signature(), master=False)
    for name in master_ports(config):
        out += _interface(name, channel_signature(port_bytes(config), ADDRESS_BITS), master=True)
    return out


def wrapper_verilog(config: HwConfig) -> str:
    """The wrapper: each reset, active low there, is registered and turned over."""
    domains = [(CLOCK, RESET, "clk", "rst")]
    if wants_half_ports(config):
        domains.append((PORT_CLOCK, PORT_RESET, "port_clk", "port_rst"))
    outside = {name for clock, reset, *_ in domains for name in (clock, reset)}
    declared = [
        f"  {'output' if output else 'input '} wire "
        + (f"[{bits - 1}:0] " if bits > 1 else "")
        + name
        for name, bits, output in ports(config)
    ]
    joined = [
        f"    .{name}({name})" for name, _, _ in ports(config) if name not in outside
    ]
    joined = [
        line
        for clock, reset, inner, inner_reset in domains
        for line in (f"    .{inner}({clock})", f"    .{inner_reset}({inner_reset})")
    ] + joined
    return "\n".join([
        f"module {WRAPPER} (",
        ",\n".join(declared),
        ");",
        *(
            f"  reg {inner} = 1'b1;\n  always @(posedge {clock}) {inner} <= ~{reset};"
            for clock, reset, _, inner in domains
        ),
        f"  {NAME} top (",
        ",\n".join(joined),
        "  );",
        "endmodule",
        "",
    ])  # fmt: skip
