"""The host link's far end: serial requests become AXI4-Lite accesses and bursts to memory.

The protocol is `flightllm.spec.serial`. One request at a time; a memory transfer is one beat a
burst, which a serial line never keeps busy.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.control import lite_signature
from flightllm.hw.memory.axi import channel_signature, tie_constants
from flightllm.spec.serial import BEAT, CHECK, IDLE_BYTES, NUMBERS, Command

__all__ = ["HostBridge"]

ADDRESS_BITS = 64


class HostBridge(wiring.Component):
    """Serves requests.

    Parameters
    ----------
    byte_cycles : clock cycles of a byte on the line.

    Members
    -------
    i, o : bytes from and to the line. control : Out, AXI4-Lite. memory : Out, AXI4, 16 bytes wide.
    """

    def __init__(self, byte_cycles: int) -> None:
        self._idle = IDLE_BYTES * byte_cycles
        super().__init__({
            "i": In(stream.Signature(8)), "o": Out(stream.Signature(8)),
            "control": Out(lite_signature()),
            "memory": Out(channel_signature(BEAT, ADDRESS_BITS)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self.command, self.check = Signal(8), Signal(8)
        self.head = Signal(48)  # numbers behind the command, the first byte lowest
        self.left = Signal(range(8))  # bytes of a head or of a beat to come
        self.beat = Signal(8 * BEAT)
        self.beats = Signal(9)
        self.place = Signal(range(BEAT + 1))
        self._constants(m)
        quiet = Signal(range(self._idle + 1))
        taken, sent = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        with m.If(taken | sent):
            m.d.sync += quiet.eq(0)
        with m.Elif(quiet != self._idle):
            m.d.sync += quiet.eq(quiet + 1)
        with m.If(taken):
            m.d.sync += self.check.eq(self.check ^ self.i.payload)
        with m.If(sent):
            m.d.sync += self.check.eq(self.check ^ self.o.payload)
        with m.FSM():
            self._requests(m, quiet == self._idle)
            self._registers(m)
            self._memory(m, quiet == self._idle)
            with m.State("check"):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(self.check)]
                with m.If(self.o.ready):
                    m.next = "command"
        return m

    def _constants(self, m: Module) -> None:
        for prefix in ("ar", "aw"):
            tie_constants(m, self.memory, prefix, BEAT)
            address = getattr(self.memory, prefix + "addr")
            m.d.comb += address.eq(self.head[:32])
        m.d.comb += [
            self.memory.wdata.eq(self.beat), self.memory.wstrb.eq(-1), self.memory.wlast.eq(1),
            self.control.awaddr.eq(self.head[:16]), self.control.araddr.eq(self.head[:16]),
            self.control.wdata.eq(self.head[16:]), self.control.wstrb.eq(-1),
        ]  # fmt: skip

    def _requests(self, m: Module, idle: Any) -> None:
        """The command, then the numbers behind it."""
        with m.State("command"):
            m.d.comb += self.i.ready.eq(1)
            with m.If(self.i.valid):
                m.d.sync += [
                    self.command.eq(self.i.payload), self.check.eq(CHECK ^ self.i.payload),
                    self.place.eq(0),
                ]  # fmt: skip
                with m.Switch(self.i.payload):
                    for command, sizes in NUMBERS.items():
                        with m.Case(command):
                            m.d.sync += self.left.eq(sum(sizes) - 1)
                            m.next = "head"
        with m.State("head"):
            m.d.comb += self.i.ready.eq(1)
            with m.If(self.i.valid):
                m.d.sync += [
                    self.head.word_select(self.place, 8).eq(self.i.payload),
                    self.place.eq(self.place + 1), self.left.eq(self.left - 1),
                ]  # fmt: skip
                with m.If(self.left == 0):
                    m.d.sync += [self.place.eq(0), self.beats.eq(self.i.payload)]
                    for command, state in (
                        (Command.REGISTER_READ, "read"), (Command.REGISTER_WRITE, "write"),
                        (Command.MEMORY_READ, "fetch"), (Command.MEMORY_WRITE, "collect"),
                    ):  # fmt: skip
                        with m.If(self.command == command):
                            m.next = state
            with m.Elif(idle):
                m.next = "command"

    def _registers(self, m: Module) -> None:
        bus = self.control
        address, data = Signal(), Signal()
        with m.State("write"):
            m.d.comb += [
                bus.awvalid.eq(~address), bus.wvalid.eq(~data), bus.bready.eq(address & data),
            ]  # fmt: skip
            with m.If(bus.awvalid & bus.awready):
                m.d.sync += address.eq(1)
            with m.If(bus.wvalid & bus.wready):
                m.d.sync += data.eq(1)
            with m.If(bus.bvalid & bus.bready):
                m.d.sync += [address.eq(0), data.eq(0)]
                m.next = "check"
        with m.State("read"):
            m.d.comb += [bus.arvalid.eq(~address), bus.rready.eq(address)]
            with m.If(bus.arvalid & bus.arready):
                m.d.sync += address.eq(1)
            with m.If(bus.rvalid & bus.rready):
                m.d.sync += [address.eq(0), self.beat[:32].eq(bus.rdata), self.beats.eq(0)]
                m.d.sync += self.place.eq(BEAT - 4)
                m.next = "send"

    def _memory(self, m: Module, idle: Any) -> None:
        bus = self.memory
        address, data = Signal(), Signal()
        last = self.place == BEAT - 1
        with m.State("collect"):
            m.d.comb += self.i.ready.eq(1)
            with m.If(self.i.valid):
                m.d.sync += [
                    self.beat.eq(Cat(self.beat[8:], self.i.payload)), self.place.eq(self.place + 1),
                ]  # fmt: skip
                with m.If(last):
                    m.d.sync += self.place.eq(0)
                    m.next = "store"
            with m.Elif(idle):
                m.next = "command"
        with m.State("store"):
            m.d.comb += [
                bus.awvalid.eq(~address), bus.wvalid.eq(~data), bus.bready.eq(address & data),
            ]  # fmt: skip
            with m.If(bus.awvalid & bus.awready):
                m.d.sync += address.eq(1)
            with m.If(bus.wvalid & bus.wready):
                m.d.sync += data.eq(1)
            with m.If(bus.bvalid & bus.bready):
                m.d.sync += [address.eq(0), data.eq(0)]
                self._next_beat(m, "collect", "check")
        with m.State("fetch"):
            m.d.comb += [bus.arvalid.eq(~address), bus.rready.eq(address)]
            with m.If(bus.arvalid & bus.arready):
                m.d.sync += address.eq(1)
            with m.If(bus.rvalid & bus.rready):
                m.d.sync += [address.eq(0), self.beat.eq(bus.rdata), self.place.eq(0)]
                m.next = "send"
        with m.State("send"):
            m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(self.beat[:8])]
            with m.If(self.o.ready):
                m.d.sync += [self.beat.eq(self.beat >> 8), self.place.eq(self.place + 1)]
                with m.If(last):
                    m.d.sync += self.place.eq(0)
                    self._next_beat(m, "fetch", "check")

    def _next_beat(self, m: Module, again: str, end: str) -> None:
        with m.If(self.beats == 0):
            m.next = end
        with m.Else():
            m.d.sync += [self.beats.eq(self.beats - 1), self.head[:32].eq(self.head[:32] + BEAT)]
            m.next = again
