"""The device: all cores, the exchange between them, and the host's registers.

Ports, by name (`Top.ports`):

- `clk`, `rst` (synchronous, active high).
- `s_axi_control_*`: AXI4-Lite slave, 16 address bits, 32 data bits; `interrupt`, a level.
- `m_axi_00_*`, `m_axi_01_*`, ...: an AXI4 master for each channel, core 0's first, then core 1's.
  Data are `beat_bytes` wide, addresses 64 bits: the channel's CHANNEL_BASE + a byte address.
  With `half_ports` they are half as wide and belong to `port_clk`, `port_rst`.

With `trace`, for core c and each unit (`ld`, `st`, `mm`, `mv`, `misc`, `sys`):

- `trace_{c}_{unit}_{start,done,address}`: `start`, a pulse when an instruction of the unit starts,
  with its word `address`; `done`, a pulse when its last result is visible. A unit works in order,
  so `done` belongs to the last start; where both come in one cycle, `done` is of the one before.
- `trace_{c}_dispatch_{valid,first,unit,address,word}`: a word that the dispatcher hands to a unit's
  queue: its first (the header, `address` is its place) or an operand, resolved.
- `trace_{c}_f_write_{valid,user,addr,count,data}`: `count` words from `addr` on are written to F by
  unit number `user`; `trace_{c}_a_write_*` the same for bytes of A.

A write's words are in `data` from bit 0 on. A unit's writes come before its `done`.
"""

from typing import Any

from amaranth.hdl import ClockDomain, DomainRenamer, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.control import Control, lite_signature
from flightllm.hw.core.core import Core, trace_signature
from flightllm.hw.exchange import Exchange
from flightllm.hw.memory.axi import channel_signature, named_ports
from flightllm.hw.memory.half_port import FAST, HalfPort
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError
from flightllm.spec.parameters import exchanged_bytes, row_words

__all__ = ["ADDRESS_BITS", "NAME", "Top", "check_buildable"]

NAME = "flightllm"
"""Of the top module."""
ADDRESS_BITS = 64


def check_buildable(config: HwConfig) -> None:
    """Refuse a configuration that the generator has no hardware for.

    Raises
    ------
    InputError
        Names the field, the limit and the value.
    """
    if config.sfu_lanes > 16:
        raise InputError(f"sfu_lanes: {config.sfu_lanes} cannot be built, the SFU has at most 16")
    if config.cores > row_words(config):
        raise InputError(
            f"channels: the maxima of {config.cores} cores do not fit {config.sfu_lanes} sfu_lanes"
        )


class Top(wiring.Component):
    """A configuration's hardware.

    Parameters
    ----------
    config : what to build. trace : with the ports of a trace. half_ports : see `HalfPort`.
    modelled : multipliers are models of their primitives, for simulation.

    Members
    -------
    control : In, AXI4-Lite. interrupt : Out. axi : Out, a channel each, all cores'.
    trace0, trace1, ... : Out, with `trace`, see `trace_signature`.
    """

    def __init__(self, config: HwConfig, *, trace: bool = False, half_ports: bool = False,
                 modelled: bool = False) -> None:  # fmt: skip
        check_buildable(config)
        self.config, self._trace, self._modelled = config, trace, modelled
        self._half, port_bytes = half_ports, config.beat_bytes // (2 if half_ports else 1)
        traces = {f"trace{c}": Out(trace_signature(config)) for c in range(config.cores)}
        self.domain, self.port_domain = ClockDomain("sync"), ClockDomain(FAST)
        super().__init__({
            "control": In(lite_signature()),
            "interrupt": Out(1),
            "axi": Out(
                channel_signature(port_bytes, ADDRESS_BITS)
            ).array(sum(config.channels)),
            **(traces if trace else {}),
        })  # fmt: skip

    def ports(self) -> dict[str, Any]:
        """Every port by its name in Verilog, for `amaranth.back.rtlil.convert`."""
        out: dict[str, Any] = {
            "clk": (self.domain.clk, None), "rst": (self.domain.rst, None),
            **named_ports("s_axi_control", self.control), "interrupt": (self.interrupt, None),
        }  # fmt: skip
        if self._half:
            out |= {
                "port_clk": (self.port_domain.clk, None), "port_rst": (self.port_domain.rst, None),
            }  # fmt: skip
        for number, axi in enumerate(self.axi):
            out |= named_ports(f"m_axi_{number:02d}", axi)
        if self._trace:
            for c in range(self.config.cores):
                out |= named_ports(f"trace_{c}", getattr(self, f"trace{c}"))
        return out

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self.config
        m.domains += self.domain
        if self._half:
            m.domains += self.port_domain
        m.submodules.control = control = Control(config)
        wiring.connect(m, wiring.flipped(self.control), control.axi)
        m.d.comb += self.interrupt.eq(control.interrupt)
        cores = [Core(config, channels, self._modelled) for channels in config.channels]
        first = 0
        for c, core in enumerate(cores):
            domain = self._units_domain(m, c, control.clear)
            m.submodules[f"core{c}"] = DomainRenamer({"units": domain})(core)
            wiring.connect(m, getattr(control, f"core{c}"), core.control)
            for k, axi in enumerate(core.axi):
                self._channel(m, first + k, axi, control.base[first + k])
            first += len(core.axi)
            if self._trace:
                wiring.connect(m, core.trace, wiring.flipped(getattr(self, f"trace{c}")))
        if len(cores) > 1:
            exchange = Exchange(
                row_words(config), exchanged_bytes(config), len(cores)
            )
            m.submodules.exchange = DomainRenamer("units0")(exchange)
            for c, core in enumerate(cores):
                wiring.connect(m, core.link, getattr(exchange, f"core{c}"))
        return m

    def _units_domain(self, m: Module, c: int, clear: Any) -> str:
        """A core's domain for what an abort resets: the same clock, a reset of its own."""
        name = f"units{c}"
        domain = ClockDomain(name)
        domain.clk = self.domain.clk
        domain.rst = Signal(init=1, name=f"{name}_rst")  # 1: the device's reset is one of the units
        m.domains += domain
        m.d.sync += domain.rst.eq(clear)
        return name

    def _channel(self, m: Module, number: int, inner: Any, base: Any) -> None:
        """A core's channel at its place on the system bus."""
        outer = self.axi[number]
        if self._half:
            m.submodules[f"port{number}"] = port = HalfPort(self.config.beat_bytes, ADDRESS_BITS)
            wiring.connect(m, port.narrow, wiring.flipped(outer))
            outer = port.wide
        for name, member in inner.signature.members.items():
            source, target = getattr(inner, name), getattr(outer, name)
            if name in ("araddr", "awaddr"):
                m.d.comb += target.eq(base + source)
            elif member.flow == Out:
                m.d.comb += target.eq(source)
            else:
                m.d.comb += source.eq(target)

