"""AXI4 as this core speaks it: one ID, INCR bursts of at most 16 beats that stay inside 4 KiB.

Such bursts are legal AXI3 as well. Names are ARM's (IHI 0022), so that a top-level port
`m_axi_00_arvalid` is recognised by every tool; `named_ports` gives a top its ports by these names.
"""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.spec.timing import BURST_BEATS

__all__ = [
    "BURST_BEATS", "Splitter", "channel_signature", "direction", "named_ports", "read_channel",
    "tie_constants", "write_channel",
]  # fmt: skip

INCR = 1
CACHE = 0b0011
"""Normal memory, not cached, bufferable; UG1037 recommends it for masters."""
_CONSTANTS = ("id", "size", "burst", "lock", "cache", "prot", "qos")


def _request(prefix: str, address_bits: int) -> dict[str, Any]:
    widths = {
        "id": 1, "addr": address_bits, "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4,
        "prot": 3, "qos": 4, "valid": 1,
    }  # fmt: skip
    return {prefix + name: Out(width) for name, width in widths.items()} | {
        prefix + "ready": In(1)
    }  # fmt: skip


def read_channel(beat_bytes: int, address_bits: int) -> Any:
    """A master's AR and R channels."""
    return wiring.Signature({
        **_request("ar", address_bits),
        "rid": In(1), "rdata": In(8 * beat_bytes), "rresp": In(2), "rlast": In(1), "rvalid": In(1),
        "rready": Out(1),
    })  # fmt: skip


def write_channel(beat_bytes: int, address_bits: int) -> Any:
    """A master's AW, W and B channels."""
    return wiring.Signature({
        **_request("aw", address_bits),
        "wdata": Out(8 * beat_bytes), "wstrb": Out(beat_bytes), "wlast": Out(1), "wvalid": Out(1),
        "wready": In(1),
        "bid": In(1), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
    })  # fmt: skip


def channel_signature(beat_bytes: int, address_bits: int) -> Any:
    """A master's five channels."""
    parts = (read_channel(beat_bytes, address_bits), write_channel(beat_bytes, address_bits))
    return wiring.Signature({name: kind for part in parts for name, kind in part.members.items()})


def tie_constants(m: Module, axi: Any, prefix: str, beat_bytes: int) -> None:
    """Drive the fields of `prefix` ("ar" or "aw") that never change."""
    values = {"size": beat_bytes.bit_length() - 1, "burst": INCR, "cache": CACHE}
    m.d.comb += [getattr(axi, prefix + name).eq(values.get(name, 0)) for name in _CONSTANTS]


def named_ports(prefix: str, interface: Any) -> dict[str, tuple[Value, PortDirection]]:
    """Ports for `amaranth.back.verilog.convert`: the members of `interface` as prefix_member."""
    flat = interface.signature.flatten(interface)
    return {
        f"{prefix}_{'_'.join(map(str, path))}": (Value.cast(value), direction(member.flow))
        for path, member, value in flat
    }


def direction(flow: Any) -> PortDirection:
    """A port's direction; told, because an output that nothing drives would become an input."""
    return PortDirection.Input if flow == In else PortDirection.Output


class Splitter(wiring.Component):
    """Cuts a transfer into bursts that end where a multiple of 16 beats ends.

    With beats of at most 256 bytes no burst crosses 4 KiB, and all but the first are aligned.

    Parameters
    ----------
    beat_bytes, address_bits : of the channel.

    Members
    -------
    start, address, beats : In, begins a transfer of `beats` (0 is none) at a byte address that is
        a multiple of beat_bytes; only while not `busy` or with the last `step`.
    step : In, the burst shown has been issued. clear : In, forgets the transfer.
    busy : Out, a burst is shown. burst_address, burst_beats : Out, the burst.
    last : Out, it is the transfer's last.
    """

    def __init__(self, beat_bytes: int, address_bits: int) -> None:
        self._shift = beat_bytes.bit_length() - 1
        bits = address_bits - self._shift
        super().__init__({
            "start": In(1), "address": In(address_bits), "beats": In(bits), "step": In(1),
            "clear": In(1), "busy": Out(1), "burst_address": Out(address_bits),
            "burst_beats": Out(range(BURST_BEATS + 1)), "last": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        at, left = Signal.like(self.beats), Signal.like(self.beats)
        to_edge = BURST_BEATS - at[:4]
        m.d.comb += [
            self.busy.eq(left != 0),
            self.last.eq(left <= to_edge),
            self.burst_beats.eq(Mux(self.last, left, to_edge)),
            self.burst_address.eq(at << self._shift),
        ]
        with m.If(self.step):
            m.d.sync += [at.eq(at + self.burst_beats), left.eq(left - self.burst_beats)]
        with m.If(self.start):
            m.d.sync += [at.eq(self.address >> self._shift), left.eq(self.beats)]
        with m.If(self.clear):
            m.d.sync += left.eq(0)
        return m
