"""AXI4-Lite slave: one access at a time becomes a read or a write of a register."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["LiteSlave", "lite_signature"]


def lite_signature() -> Any:
    """A master's ports, 32 bits wide. Every answer is OKAY."""
    return wiring.Signature({
        "awaddr": Out(ADDRESS_BITS), "awvalid": Out(1), "awready": In(1),
        "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
        "bresp": In(2), "bvalid": In(1), "bready": Out(1),
        "araddr": Out(ADDRESS_BITS), "arvalid": Out(1), "arready": In(1),
        "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
    })  # fmt: skip


class LiteSlave(wiring.Component):
    """Reads and writes may overlap; each takes a few cycles.

    Members
    -------
    axi : In, see `lite_signature`.
    write : Out, a pulse; write_address, data, mask : Out, of it; bits of `mask` are written.
    read : Out, a pulse; read_address : Out, of it, stable until `value` is taken.
    value : In, the register's value two cycles after `read`.
    """

    def __init__(self) -> None:
        super().__init__({
            "axi": In(lite_signature()),
            "write": Out(1), "write_address": Out(ADDRESS_BITS), "data": Out(32), "mask": Out(32),
            "read": Out(1), "read_address": Out(ADDRESS_BITS), "value": In(32),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        axi = self.axi
        accept = Signal()
        m.d.comb += [
            accept.eq(axi.awvalid & axi.wvalid & ~axi.bvalid),
            axi.awready.eq(accept), axi.wready.eq(accept),
        ]  # fmt: skip
        m.d.sync += self.write.eq(accept)
        with m.If(accept):
            m.d.sync += [
                axi.bvalid.eq(1), self.write_address.eq(axi.awaddr), self.data.eq(axi.wdata),
                self.mask.eq(Cat(bit.replicate(8) for bit in axi.wstrb)),
            ]  # fmt: skip
        with m.Elif(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.FSM():
            with m.State("idle"):
                m.d.comb += axi.arready.eq(1)
                with m.If(axi.arvalid):
                    m.d.sync += self.read_address.eq(axi.araddr)
                    m.next = "read"
            with m.State("read"):
                m.d.comb += self.read.eq(1)
                m.next = "pick"
            with m.State("pick"):
                m.next = "take"
            with m.State("take"):
                m.d.sync += [axi.rvalid.eq(1), axi.rdata.eq(self.value)]
                m.next = "answer"
            with m.State("answer"), m.If(axi.rready):
                m.d.sync += axi.rvalid.eq(0)
                m.next = "idle"
        return m
