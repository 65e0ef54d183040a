"""The registers of `spec.registers`, around the cores and the run.

Offsets, fields and access come from the table; a register that this file does not know, or a core
that does not fill, fails when the design is built.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.control.lite import LiteSlave, lite_signature
from flightllm.hw.control.run import EVENTS, RunControl
from flightllm.hw.core.core import control_signature
from flightllm.hw.core.monitor import COUNTERS
from flightllm.hw.core.registers import register_layout
from flightllm.hw.dispatcher import HOST_REGISTERS
from flightllm.hw.sharing import shared
from flightllm.spec.config import HwConfig
from flightllm.spec.isa import UNITS
from flightllm.spec.registers import (
    CORE_REGISTERS,
    CORE_WINDOW,
    DEVICE_REGISTERS,
    IDENTIFICATION,
    MAP_VERSION,
    Access,
    HostRegister,
)

__all__ = ["Control"]

WINDOW_BITS = (CORE_WINDOW - 1).bit_length()


@shared()
class Control(wiring.Component):
    """Everything between the host and the cores.

    Parameters
    ----------
    config : of the device.

    Members
    -------
    axi : In, an AXI4-Lite slave. interrupt : Out, a level.
    core0, core1, ... : Out, `control_signature`. clear : Out, units are to be reset.
    base : Out, each channel's address on the system bus, all cores' in order.
    """

    def __init__(self, config: HwConfig) -> None:
        self._config = config
        super().__init__({
            "axi": In(lite_signature()),
            "interrupt": Out(1),
            **{f"core{c}": Out(control_signature(config)) for c in range(config.cores)},
            "clear": Out(1),
            "base": Out(64).array(sum(config.channels)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.slave = self.slave = slave = LiteSlave()
        m.submodules.run = self.run = RunControl(self._config.cores)
        wiring.connect(m, wiring.flipped(self.axi), slave.axi)
        cores = [getattr(self, f"core{c}") for c in range(self._config.cores)]
        self._stored: dict[str, Any] = {}
        self._windows: list[dict[int, Any]] = [{} for _ in range(1 + len(cores))]
        for register in DEVICE_REGISTERS:
            self._place(m, 0, register, self._device_values(m, register))
        for c, core in enumerate(cores):
            for register in CORE_REGISTERS:
                self._place(m, 1 + c, register, self._core_values(m, c, core, register))
        self._commands(m, cores)
        self._read(m)
        return m

    # ------------------------------------------------------------------------ the register file

    def _hit(self, address: Any, window: int, offset: int) -> Any:
        return address == window * CORE_WINDOW + offset

    def _written(self, window: int, offset: int) -> Any:
        """The host writes this register in this cycle."""
        return self.slave.write & self._hit(self.slave.write_address, window, offset)

    def _reads(self, window: int, offset: int) -> Any:
        return self.slave.read & self._hit(self.slave.read_address, window, offset)

    def _merged(self, old: Any) -> Any:
        """`old` with the bytes that the host writes."""
        slave = self.slave
        return (old & ~slave.mask) | (slave.data & slave.mask)

    def _storage(self, m: Module, window: int, register: HostRegister, count: int) -> list[Any]:
        """Registers that hold what the host wrote."""
        out = []
        for index in range(count):
            offset = register.offset + index * register.stride
            width = sum(field.mask for field in register.fields).bit_length() or 32
            value = Signal(width, name=f"{register.name}_{window}_{index}".lower())
            with m.If(self._written(window, offset)):
                m.d.sync += value.eq(self._merged(value))
            out.append(value)
        return out

    def _place(self, m: Module, window: int, register: HostRegister, values: list[Any]) -> None:
        for index, value in enumerate(values):
            self._windows[window][register.offset + index * register.stride] = value

    def _read(self, m: Module) -> None:
        """Each window picks its register, then the window is picked."""
        slave, picked = self.slave, []
        for number, window in enumerate(self._windows):
            value = Signal(32, name=f"window_{number}")
            chosen = Signal(32, name=f"chosen_{number}")
            with m.Switch(slave.read_address[:WINDOW_BITS]):
                for offset, source in window.items():
                    with m.Case(offset):
                        m.d.comb += chosen.eq(source)
            with m.If(slave.read_address[WINDOW_BITS:] == number):
                m.d.sync += value.eq(chosen)
            with m.Else():
                m.d.sync += value.eq(0)
            picked.append(value)
        joined = picked[0]
        for value in picked[1:]:
            joined = joined | value
        m.d.sync += slave.value.eq(joined)

    # ------------------------------------------------------------------------ what they hold

    def _device_values(self, m: Module, register: HostRegister) -> list[Any]:
        config, run, name = self._config, self.run, register.name
        if register.access is Access.WRITE:
            self._stored[name] = stored = self._storage(m, 0, register, register.count)
            return stored
        if name == "ID":
            return [Const(IDENTIFICATION, 32)]
        if name == "VERSION":
            return [Const(MAP_VERSION, 32)]
        if name == "SHAPE":
            fields = {"cores": config.cores, "units": len(UNITS), "top_k": config.top_k}
            return [Const(sum(register.field(k).mask & v << register.field(k).low
                              for k, v in fields.items()), 32)]  # fmt: skip
        if name == "CONTROL":
            for field in register.fields:
                bit = self.slave.data[field.low] & self.slave.mask[field.low]
                m.d.comb += getattr(run, field.name).eq(self._written(0, register.offset) & bit)
            return [Const(0, 32)]
        if name == "STATUS":
            status = Signal(register_layout(name))
            m.d.comb += [status.busy.eq(run.busy), status.core.eq(run.core)]
            m.d.comb += [status[event].eq(run.status[event]) for event in EVENTS]
            return [status.as_value()]
        if name == "INTERRUPT_STATUS":
            return [self._interrupt(m, register)]
        if name == "CONFIG_DIGEST":
            digest = config.digest
            return [Const(int(digest[8 * k : 8 * k + 8], 16), 32) for k in range(register.count)]
        if name == "CYCLES_LOW":
            high = Signal(32)
            with m.If(self._reads(0, register.offset)):
                m.d.sync += high.eq(run.cycles[32:])
            self._stored["CYCLES_HIGH"] = [high]
            return [run.cycles[:32]]
        if name == "CYCLES_HIGH":
            return self._stored[name]
        raise KeyError(f"the control unit does not know register {name}")

    def _interrupt(self, m: Module, register: HostRegister) -> Any:
        """Events are kept until the host writes their bits; enabled ones raise the interrupt."""
        kept = Signal(register_layout(register.name))
        (enabled,) = self._stored["INTERRUPT_ENABLE"]
        written = Mux(self._written(0, register.offset), self.slave.data & self.slave.mask, 0)
        for field in register.fields:
            bit = kept[field.name]
            m.d.sync += bit.eq((bit & ~written[field.low]) | self.run.occurred[field.name])
        m.d.sync += self.interrupt.eq((kept.as_value() & enabled).any())
        return kept.as_value()

    def _core_values(self, m: Module, c: int, core: Any, register: HostRegister) -> list[Any]:
        name, window = register.name, 1 + c
        if name.startswith("CHANNEL_BASE"):
            stored = self._storage(m, window, register, self._config.channels[c])
            first = sum(self._config.channels[:c])
            half = slice(32, 64) if name.endswith("HIGH") else slice(0, 32)
            m.d.comb += [self.base[first + k][half].eq(value) for k, value in enumerate(stored)]
            return stored
        if name == "ENTRY":
            (stored,) = self._storage(m, window, register, 1)
            m.d.comb += core.entry.eq(stored)
            return [stored]
        if name == "MEMORY_ADDRESS":
            return [self._memory_address(m, window, core, register)]
        if name == "MEMORY_DATA":
            return [Mux(self._stored["MEMORY_PARAMS"], core.params.value, core.program.value)]
        if name.startswith("COUNT_"):
            kind = COUNTERS[COUNTERS.index(name.removeprefix("COUNT_"))]
            return [core.counters[unit][kind] for unit in UNITS]
        values = {
            "CORE_STATUS": [core.status.as_value()],
            "ERROR": [core.error.as_value()],
            "ERROR_ADDRESS": [core.error_address],
            "WAITS": [core.waits[unit].as_value() for unit in UNITS],
        }
        return values[name]

    def _memory_address(self, m: Module, window: int, core: Any, register: HostRegister) -> Any:
        """The host's way into program and parameter memory."""
        address = Signal(register_layout(register.name), name=f"memory_address_{window}")
        (data_register,) = (r for r in CORE_REGISTERS if r.name == "MEMORY_DATA")
        writes, reads = (
            act(window, data_register.offset) for act in (self._written, self._reads)
        )
        with m.If(self._written(window, register.offset)):
            m.d.sync += address.as_value().eq(self._merged(address.as_value()))
        with m.Elif(writes | reads):
            m.d.sync += address.word.eq(address.word + 1)
        for port, mine, depth in (
            (core.program, ~address.params, self._config.program_words),
            (core.params, address.params, self._config.param_words),
        ):  # fmt: skip
            m.d.comb += [
                port.address.eq(address.word), port.data.eq(self.slave.data),
                port.enable.eq(writes & mine & (address.word < depth) & ~self.run.busy),
            ]  # fmt: skip
        self._stored["MEMORY_PARAMS"] = address.params
        return address.as_value()

    # ------------------------------------------------------------------------ commands

    def _commands(self, m: Module, cores: list[Any]) -> None:
        run = self.run
        m.d.comb += [self.clear.eq(run.clear), run.watchdog.eq(self._stored["WATCHDOG"][0])]
        for name in ("halted", "failed", "quiet", "moving"):
            m.d.comb += getattr(run, name).eq(Cat(getattr(core, name) for core in cores))
        for core in cores:
            for register in HOST_REGISTERS:
                (value,) = self._stored[register.name]
                m.d.comb += getattr(core, register.name.lower()).eq(value)
            m.d.comb += [
                core.clear.eq(run.clear), core.start.eq(run.go), core.forget.eq(run.forget),
                core.count.eq(run.count), core.expired.eq(run.expired),
                core.aborted.eq(run.stopped),
            ]  # fmt: skip
