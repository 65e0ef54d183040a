"""All that the ULX3S holds but its pads and its clock: core, host bridge, SDRAM controller."""

from __future__ import annotations

from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Instance,
    Module,
    Mux,
    ResetSignal,
    Signal,
)
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.boards.ulx3s.bridge import HostBridge
from flightllm.hw.boards.ulx3s.sdram import SdramController, SdramTiming, pins_signature
from flightllm.hw.boards.ulx3s.uart import Receiver, Transmitter
from flightllm.hw.control import lite_signature
from flightllm.hw.memory.axi import channel_signature, named_ports
from flightllm.hw.top import NAME
from flightllm.hw.verilog import design_rtlil
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.serial import BAUD, BEAT

__all__ = ["MemoryShare", "SHELL", "Shell", "shell_rtlil"]

SHELL = "ulx3s_shell"
"""Of the module."""
ADDRESS_BITS = 64
BYTE_BITS = 10
UNDER_WAY = 63
"""Reads of one user at most before the other's turn can come."""


class MemoryShare(wiring.Component):
    """Two users of one AXI4 port whose slave serves one write at a time.

    Reads of one user end before the other's begin, so that data need no ID. The slave looks at an
    address only in the cycle in which it takes it.

    Members
    -------
    core, host : In, the users; the core goes first. port : Out, to the slave.
    """

    def __init__(self) -> None:
        channel = channel_signature(BEAT, ADDRESS_BITS)
        super().__init__({"core": In(channel), "host": In(channel), "port": Out(channel)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._reads(m)
        self._writes(m)
        return m

    def _address(self, m: Module, prefix: str, allowed: dict[str, Any]) -> Signal:
        """Join the users' address channels; gives whose is shown, 1 the host's."""
        port, host = self.port, Signal(name=f"{prefix}_host")
        asks = {name: getattr(getattr(self, name), prefix + "valid") & allowed[name]
                for name in ("core", "host")}  # fmt: skip
        m.d.comb += [
            host.eq(~asks["core"]),
            getattr(port, prefix + "valid").eq(asks["core"] | asks["host"]),
        ]
        ready = getattr(port, prefix + "ready")
        for number, name in enumerate(("core", "host")):
            user = getattr(self, name)
            m.d.comb += getattr(user, prefix + "ready").eq(ready & asks[name] & (host == number))
            with m.If(host == number):
                for member in port.signature.members:
                    if member.startswith(prefix) and member not in (
                        prefix + "valid", prefix + "ready",
                    ):  # fmt: skip
                        m.d.comb += getattr(port, member).eq(getattr(user, member))
        return host

    def _reads(self, m: Module) -> None:
        port = self.port
        owner, count = Signal(), Signal(range(UNDER_WAY + 1))
        idle, room = count == 0, count != UNDER_WAY
        host = self._address(m, "ar", {
            "core": room & (idle | ~owner), "host": room & (idle | owner),
        })  # fmt: skip
        taken = port.arvalid & port.arready
        ended = port.rvalid & port.rready & port.rlast
        with m.If(taken):
            m.d.sync += owner.eq(host)
        m.d.sync += count.eq(count + taken - ended)
        m.d.comb += port.rready.eq(Mux(owner, self.host.rready, self.core.rready))
        for user, mine in ((self.core, ~owner), (self.host, owner)):
            m.d.comb += [
                user.rvalid.eq(port.rvalid & mine), user.rdata.eq(port.rdata),
                user.rresp.eq(port.rresp), user.rlast.eq(port.rlast), user.rid.eq(port.rid),
            ]  # fmt: skip

    def _writes(self, m: Module) -> None:
        port, owner = self.port, Signal()
        host = self._address(m, "aw", {"core": 1, "host": 1})
        with m.If(port.awvalid & port.awready):
            m.d.sync += owner.eq(host)
        for name in ("wdata", "wstrb", "wlast", "wvalid", "bready"):
            mine = getattr(self.host, name), getattr(self.core, name)
            m.d.comb += getattr(port, name).eq(Mux(owner, *mine))
        for user, mine in ((self.core, ~owner), (self.host, owner)):
            m.d.comb += [
                user.wready.eq(port.wready & mine), user.bvalid.eq(port.bvalid & mine),
                user.bresp.eq(port.bresp), user.bid.eq(port.bid),
            ]  # fmt: skip


class Shell(wiring.Component):
    """The design behind the pads.

    Parameters
    ----------
    config : of the core: one channel with beats of 16 bytes.
    divisor : clock cycles of a bit on the serial line; None for `BAUD`.

    Members
    -------
    received : In, the line from the host. sent : Out, the line to it.
    pins : Out, the SDRAM chip's. interrupt : Out, the core's.
    """

    def __init__(self, config: HwConfig, divisor: int | None = None) -> None:
        if config.channels != (1,) or config.beat_bytes != BEAT:
            raise InputError(
                f"channels, beat_bytes: {list(config.channels)}, {config.beat_bytes} do not fit"
                f" the ULX3S, whose one memory takes beats of {BEAT} bytes"
            )
        self._divisor = divisor or round(config.clock_mhz * 1e6 / BAUD)
        self._timing = SdramTiming.at(config.clock_mhz)
        self.domain = ClockDomain("sync")
        super().__init__({
            "received": In(1, init=1), "sent": Out(1, init=1), "pins": Out(pins_signature()),
            "interrupt": Out(1),
        })  # fmt: skip

    def ports(self) -> dict[str, Any]:
        """Every port by its name in Verilog."""
        return {
            "clk": (self.domain.clk, None), "rst": (self.domain.rst, None),
            "received": (self.received, None), "sent": (self.sent, None),
            "interrupt": (self.interrupt, None), **named_ports("sdram", self.pins),
        }  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.domains += self.domain
        control = lite_signature().create(path=("control",))
        memory = channel_signature(BEAT, ADDRESS_BITS).create(path=("memory",))
        m.submodules.core = self._core(wiring.flipped(control), memory)
        m.submodules.receiver = receiver = Receiver(self._divisor)
        m.submodules.transmitter = transmitter = Transmitter(self._divisor)
        m.submodules.bridge = bridge = HostBridge(BYTE_BITS * self._divisor)
        m.submodules.share = share = MemoryShare()
        m.submodules.sdram = sdram = SdramController(self._timing)
        m.d.comb += [receiver.line.eq(self.received), self.sent.eq(transmitter.line)]
        wiring.connect(m, receiver.o, bridge.i)
        wiring.connect(m, bridge.o, transmitter.i)
        wiring.connect(m, bridge.control, wiring.flipped(control))
        wiring.connect(m, memory, share.core)
        wiring.connect(m, bridge.memory, share.host)
        wiring.connect(m, share.port, sdram.axi)
        wiring.connect(m, sdram.pins, wiring.flipped(self.pins))
        return m

    def _core(self, control: Any, memory: Any) -> Instance:
        """The core as the module that `design_rtlil` makes, so that it can be simulated alone."""
        ports: dict[str, Any] = {
            "i_clk": ClockSignal(), "i_rst": ResetSignal(), "o_interrupt": self.interrupt,
        }  # fmt: skip
        for interface in (("s_axi_control", control), ("m_axi_00", memory)):
            for name, (value, flow) in named_ports(*interface).items():
                ports[f"{'i' if flow is PortDirection.Input else 'o'}_{name}"] = value
        return Instance(NAME, **ports)


def shell_rtlil(config: HwConfig, divisor: int | None = None) -> str:
    """The shell and the core in it as RTLIL; see `Shell`."""
    shell = Shell(config, divisor)
    text = rtlil.convert(shell, name=SHELL, ports=shell.ports(), emit_src=False)
    return design_rtlil(config) + "\n" + text
