"""A small design with the accelerator's ports: it copies memory, channel by channel.

It has the accelerator's AXI masters and AXI4-Lite slave and a few registers, so that they, and the
simulation's harness and memory, can be tested apart from the rest. SOURCE and TARGET are the low
words of byte addresses, HIGH the high word of both; PLANT chooses a way to break AXI's rules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring

from flightllm.hw.control.lite import LiteSlave
from flightllm.hw.memory.axi import named_ports
from flightllm.hw.memory.read_master import ReadMaster
from flightllm.hw.memory.write_master import WriteMaster
from flightllm.sim.rtl.library import Design

__all__ = [
    "ABORT", "BASE", "BEATS", "BUSY", "ERROR", "HIGH", "PLANT", "PLANTS", "SOURCE", "START",
    "TARGET", "copy_design",
]  # fmt: skip

ADDRESS_BITS = 64
BASE = 1 << 32
SOURCE, TARGET, BEATS, START, BUSY, ERROR, HIGH, PLANT, ABORT = range(0, 36, 4)
PLANTS = {
    1: "a burst crosses 4 KiB", 2: "arvalid was taken back", 3: "AR changed while it waited",
    4: "wlast is in the wrong beat", 5: "W changed while it waited", 6: "a burst is not INCR",
    7: "no answer to a write of 0x0000",
}  # fmt: skip
"""What each value of PLANT makes the memory or the harness say."""


class _Copy(wiring.Component):
    """The design; its AXI ports are members of the masters."""

    def __init__(self, channels: int, beat_bytes: int) -> None:
        self._beat = beat_bytes
        self.readers = [ReadMaster(beat_bytes, ADDRESS_BITS, 512, 32, 32) for _ in range(channels)]
        self.writers = [WriteMaster(beat_bytes, ADDRESS_BITS) for _ in range(channels)]
        self.lite = LiteSlave()
        self.interrupt = Signal()
        self.planted = {
            "araddr": Signal(ADDRESS_BITS), "arvalid": Signal(), "wlast": Signal(),
            "wdata": Signal(8 * beat_bytes), "arburst": Signal(2), "bvalid": Signal(),
        }  # fmt: skip
        super().__init__({})

    def ports(self) -> dict[str, Any]:
        """By their names, for `verilog.convert`."""
        out: dict[str, Any] = named_ports("s_axi_control", self.lite.axi)
        out["interrupt"] = (self.interrupt, None)
        for c, (reader, writer) in enumerate(zip(self.readers, self.writers)):
            out |= named_ports(f"m_axi_{c:02d}", reader.axi)
            out |= named_ports(f"m_axi_{c:02d}", writer.axi)
        for name, signal in self.planted.items():
            out["s_axi_control_bvalid" if name == "bvalid" else f"m_axi_00_{name}"] = (signal, None)
        return out

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.lite = self.lite
        names = {SOURCE: "source", TARGET: "target", BEATS: "beats", HIGH: "high", PLANT: "plant"}
        values: dict[int, Any] = {at: Signal(32, name=name) for at, name in names.items()}
        start, abort, busy, error = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [start.eq(0), abort.eq(0)]
        self._write(m, values, start, abort)
        self._read(m, values | {BUSY: busy, ERROR: error})
        self._copy(m, values, start, abort, busy, error)
        self._plant(m, values[PLANT])
        return m

    def _write(self, m: Module, values: dict[int, Any], start: Any, abort: Any) -> None:
        lite = self.lite
        with m.If(lite.write), m.Switch(lite.write_address & ~3):
            for place, value in values.items():
                with m.Case(place):
                    m.d.sync += value.eq(lite.data & lite.mask | value & ~lite.mask)
            with m.Case(START):
                m.d.sync += start.eq(1)
            with m.Case(ABORT):
                m.d.sync += abort.eq(1)

    def _read(self, m: Module, values: dict[int, Any]) -> None:
        with m.Switch(self.lite.read_address):
            for place, value in values.items():
                with m.Case(place):
                    m.d.sync += self.lite.value.eq(value)
            with m.Default():
                m.d.sync += self.lite.value.eq(0)

    def _plant(self, m: Module, plant: Any) -> None:
        """Channel 0's wires, as they are or broken."""
        read, write = self.readers[0].axi, self.writers[0].axi
        clock = Signal(4)
        m.d.sync += clock.eq(clock + 1)
        m.d.comb += [
            self.planted["araddr"].eq(Mux(
                plant == 1, read.araddr + self._beat,
                read.araddr + Mux((plant == 3) & clock[0], 16 * self._beat, 0),
            )),
            self.planted["arvalid"].eq(read.arvalid & ~((plant == 2) & clock[0])),
            self.planted["arburst"].eq(Mux(plant == 6, 2, read.arburst)),
            self.planted["wlast"].eq(write.wlast & (plant != 4)),
            self.planted["wdata"].eq(write.wdata ^ Mux(plant == 5, clock, 0)),
            self.planted["bvalid"].eq(
                self.lite.axi.bvalid & ~((plant == 7) & (self.lite.write_address == SOURCE))
            ),
        ]  # fmt: skip

    def _copy(self, m: Module, values: dict[int, Any], start: Any, abort: Any, busy: Any,
              error: Any) -> None:  # fmt: skip
        idle, errors = [], []
        for c, (reader, writer) in enumerate(zip(self.readers, self.writers)):
            m.submodules[f"read_{c}"], m.submodules[f"write_{c}"] = reader, writer
            m.d.comb += [
                reader.i.valid.eq(start), writer.i.valid.eq(start),
                reader.i.payload.address.eq(Cat(values[SOURCE], values[HIGH])),
                writer.i.payload.address.eq(Cat(values[TARGET], values[HIGH])),
                reader.i.payload.beats.eq(values[BEATS]),
                writer.i.payload.beats.eq(values[BEATS]),
                reader.abort.eq(abort), writer.abort.eq(abort),
                writer.data.valid.eq(reader.weights.valid),
                reader.weights.ready.eq(writer.data.ready),
                writer.data.payload.bytes.eq(reader.weights.payload),
                writer.data.payload.strobe.eq(-1),
            ]  # fmt: skip
            idle += [reader.idle, writer.idle]
            errors += [reader.error, writer.error]
        was = Signal()
        m.d.comb += [busy.eq(start | ~Cat(idle).all()), error.eq(Cat(errors).any())]
        m.d.sync += was.eq(busy)
        with m.If(was & ~busy):
            m.d.sync += self.interrupt.eq(1)
        with m.If(start):
            m.d.sync += self.interrupt.eq(0)


def copy_design(channels: int = 2, beat_bytes: int = 16) -> Design:
    """The design for `build_library`."""

    def text() -> str:
        top = _Copy(channels, beat_bytes)
        return verilog.convert(top, name="copy_top", ports=top.ports(), emit_src=False)

    return Design("copy_top", channels, beat_bytes, text, Path(__file__).read_text())
