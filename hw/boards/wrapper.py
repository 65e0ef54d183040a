"""The Verilog around the top: the clock, reset and port names that AMD's tools expect."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth.lib import wiring

from flightllm.hw.control import lite_signature
from flightllm.hw.memory.axi import channel_signature
from flightllm.hw.top import ADDRESS_BITS, NAME
from flightllm.spec.config import HwConfig
from flightllm.spec.handoff import CONTROL_PORT, master_ports

__all__ = ["CLOCK", "INTERRUPT", "RESET", "WRAPPER", "ports", "wrapper_verilog"]

WRAPPER = f"{NAME}_kernel"
"""The wrapper's module."""
CLOCK, RESET, INTERRUPT = "ap_clk", "ap_rst_n", "interrupt"


def _interface(prefix: str, signature: wiring.Signature, master: bool) -> Iterator[tuple]:
    for name, member in signature.members.items():
        width = member.shape if isinstance(member.shape, int) else len(member.shape)
        output = (member.flow == wiring.Out) == master
        yield f"{prefix}_{name}", width, output


def ports(config: HwConfig) -> list[tuple[str, int, bool]]:
    """(name, bits, whether it is an output) of every port of the wrapper."""
    out = [(CLOCK, 1, False), (RESET, 1, False), (INTERRUPT, 1, True)]
    out += _interface(CONTROL_PORT, lite_signature(), master=False)
    for name in master_ports(config):
        out += _interface(name, channel_signature(config.beat_bytes, ADDRESS_BITS), master=True)
    return out


def wrapper_verilog(config: HwConfig) -> str:
    """The wrapper: the reset, active low there, is registered and turned over."""
    declared = [
        f"  {'output' if output else 'input '} wire "
        + (f"[{bits - 1}:0] " if bits > 1 else "")
        + name
        for name, bits, output in ports(config)
    ]
    joined = [
        f"    .{name}({name})" for name, _, _ in ports(config) if name not in (CLOCK, RESET)
    ]
    return "\n".join([
        f"module {WRAPPER} (",
        ",\n".join(declared),
        ");",
        "  reg reset = 1'b1;",
        f"  always @(posedge {CLOCK}) reset <= ~{RESET};",
        f"  {NAME} top (",
        ",\n".join([f"    .clk({CLOCK})", "    .rst(reset)", *joined]),
        "  );",
        "endmodule",
        "",
    ])  # fmt: skip
