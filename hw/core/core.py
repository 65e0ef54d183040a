"""One core: a dispatcher, six units behind queues, semaphores, buffers, and memory channels.

Two domains share one clock: `units` is reset at the start of a run and by an abort, `sync` is not,
so that transfers that are under way can end.
"""

from typing import Any

from amaranth.hdl import Cat, DomainRenamer, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from flightllm.hw.core.buffers import USERS, CoreBuffers, written_signature
from flightllm.hw.core.errors import DISPATCHER, ErrorLatch
from flightllm.hw.core.monitor import Counters, UnitMonitor
from flightllm.hw.core.queue import UnitQueue
from flightllm.hw.core.registers import register_layout
from flightllm.hw.dispatcher import HOST_REGISTERS, Dispatcher, memory_port
from flightllm.hw.engine import MatrixEngine, engine_size
from flightllm.hw.exchange import SystemUnit, link_signature
from flightllm.hw.memory.axi import channel_signature
from flightllm.hw.memory.load import LoadUnit
from flightllm.hw.memory.store import StoreUnit
from flightllm.hw.semaphores import Semaphores
from flightllm.hw.sfu.unit import SpecialFunctionUnit
from flightllm.hw.sharing import shared
from flightllm.spec.config import HwConfig
from flightllm.spec.isa import UNITS, Unit
from flightllm.spec.parameters import (
    exchanged_bytes,
    matrix_parameters,
    row_bytes,
    row_words,
)
from flightllm.spec.registers import ErrorCode

__all__ = ["Core", "control_signature", "trace_signature"]


def control_signature(config: HwConfig) -> Any:
    """The device's side of a core.

    Members
    -------
    clear : units are reset and transfers end; start : a pulse, the program begins.
    forget : errors, counters and `halted` go. count : counters count.
    expired, aborted : pulses, reasons to note as the core's error unless it has one.
    entry, pos, ntok, steps, logits : of the next start. program, params : the host's ports.
    halted : the program ended. failed : it has an error. quiet : no transfer is under way.
    moving : something moved in this cycle. status : CORE_STATUS.
    error, error_address, waits, counters : as the registers show them, by unit.
    """
    outputs = {
        "halted": In(1), "failed": In(1), "quiet": In(1), "moving": In(1),
        "status": In(register_layout("CORE_STATUS")),
        "error": In(register_layout("ERROR")), "error_address": In(32),
        "waits": In(data.ArrayLayout(register_layout("WAITS"), len(UNITS))),
        "counters": In(data.ArrayLayout(Counters(), len(UNITS))),
    }  # fmt: skip
    return wiring.Signature({
        **dict.fromkeys(("clear", "start", "forget", "count", "expired", "aborted"), Out(1)),
        "entry": Out(32), **{name.name.lower(): Out(32) for name in HOST_REGISTERS},
        "program": Out(memory_port(config.program_words)),
        "params": Out(memory_port(config.param_words)),
        **outputs,
    })  # fmt: skip


def trace_signature(config: HwConfig) -> Any:
    """What a simulator may want to see of a core; see hw/top.py."""
    bits, lanes = (config.program_words - 1).bit_length(), row_words(config)
    unit = wiring.Signature({"start": Out(1), "done": Out(1), "address": Out(bits)})
    sent = wiring.Signature({
        "valid": Out(1), "first": Out(1), "unit": Out(3), "address": Out(bits), "word": Out(32),
    })  # fmt: skip
    return wiring.Signature({
        **{name.name.lower(): Out(unit) for name in UNITS}, "dispatch": Out(sent),
        "f_write": Out(written_signature(lanes, 32)),
        "a_write": Out(written_signature(exchanged_bytes(config), 8)),
    })  # fmt: skip


@shared("units")
class Core(wiring.Component):
    """One of a configuration's cores.

    Parameters
    ----------
    channels : of this core. modelled : multipliers are models of their primitives, for simulation.

    Members
    -------
    control : In, see `control_signature`. axi : Out, a channel each. link : Out, to the exchange.
    trace : Out, see `trace_signature`.
    """

    def __init__(self, config: HwConfig, channels: int, modelled: bool = False) -> None:
        self._config, self._channels, self._modelled = config, channels, modelled
        address_bits = (config.channel_bytes - 1).bit_length()
        super().__init__({
            "control": In(control_signature(config)),
            "axi": Out(
                channel_signature(config.beat_bytes, address_bits)
            ).array(self._channels),
            "link": Out(link_signature(row_words(config), exchanged_bytes(config))),
            "trace": Out(trace_signature(config)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._units(m)
        self._dispatch(m)
        self._buffers(m)
        self._engine_owner(m)
        self._memory(m)
        self._monitors(m)
        self._errors(m)
        self._state(m)
        self._trace(m)
        return m

    def _add(self, m: Module, name: str, component: Any) -> Any:
        """A submodule whose `sync` is the resettable domain."""
        m.submodules[name] = DomainRenamer("units")(component)
        return component

    # ------------------------------------------------------------------------ parts

    def _units(self, m: Module) -> None:
        config, channels = self._config, self._channels
        made = matrix_parameters(config)
        size = engine_size(config, config.channels.index(channels))
        lanes, self.levels = row_words(config), exchanged_bytes(config)
        self.window = row_bytes(config)
        self.engine_window = size.window_bytes
        m.submodules.ld = self.ld = LoadUnit(
            channels, config.beat_bytes, lanes, config.prefetch_bytes, config.channel_bytes
        )
        m.submodules.st = self.st = StoreUnit(
            channels, config.beat_bytes, lanes, self.window, config.channel_bytes
        )
        self.engine = self._add(m, "engine", MatrixEngine(
            size, config.beat_bytes, made.dsp_kind, made.chain_length, made.full_pairs,
            self._modelled,
        ))  # fmt: skip
        self.misc = self._add(
            m, "misc", SpecialFunctionUnit(config.sfu_lanes, config.top_k, config.cores)
        )
        self.sys = self._add(m, "sys", SystemUnit(lanes, self.levels, self.window, config.cores))
        wiring.connect(m, self.sys.link, wiring.flipped(self.link))
        m.d.comb += [self.ld.abort.eq(self.control.clear), self.st.abort.eq(self.control.clear)]

    def _ports(self, unit: Unit) -> tuple[Any, Any]:
        """A unit's queue and semaphores."""
        if unit in (Unit.MM, Unit.MV):
            name = unit.name.lower()
            return getattr(self.engine, f"{name}_queue"), getattr(self.engine, f"{name}_semaphores")
        part = {Unit.LD: self.ld, Unit.ST: self.st, Unit.MISC: self.misc, Unit.SYS: self.sys}[unit]
        return part.queue, part.semaphores

    def _dispatch(self, m: Module) -> None:
        """Dispatcher to queues to units; semaphores."""
        config, control = self._config, self.control
        self.dispatcher = dispatcher = self._add(
            m, "dispatcher", Dispatcher(config.program_words, config.param_words)
        )
        for name in ("start", "entry", *(name.name.lower() for name in HOST_REGISTERS)):
            m.d.comb += getattr(dispatcher, name).eq(getattr(control, name))
        for name in ("program", "params"):
            wiring.connect(m, wiring.flipped(getattr(control, name)), getattr(dispatcher, name))
        wiring.connect(m, self.engine.params, dispatcher.tables)
        self.semaphores = self._add(m, "semaphores", Semaphores())
        self.queues = {}
        for unit in UNITS:
            name = unit.name.lower()
            queue = self._add(m, f"{name}_queue", UnitQueue(unit, len(dispatcher.address)))
            self.queues[unit] = queue
            words, tokens = self._ports(unit)
            wiring.connect(m, getattr(dispatcher, f"queue{unit}"), queue.i)
            wiring.connect(m, queue.o, words)
            wiring.connect(m, tokens, getattr(self.semaphores, f"unit{unit}"))
            m.d.comb += [queue.first.eq(dispatcher.first), queue.address.eq(dispatcher.address)]

    def _buffers(self, m: Module) -> None:
        config = self._config
        self.buffers = buffers = self._add(m, "buffers", CoreBuffers(
            config.float_words, config.act_bytes, row_words(config), self.levels, self.window,
            self.engine_window,
        ))  # fmt: skip
        for name, port in (
            ("misc_x", self.misc.read_x), ("misc_y", self.misc.read_y),
            ("misc_f", self.misc.f_write), ("misc_a", self.misc.a_write),
            ("engine_f_read", self.engine.f_read), ("engine_f_write", self.engine.f_write),
            ("engine_a_read", self.engine.a),
            ("ld_f_read", self.ld.f_read), ("ld_f_write", self.ld.f_write),
            ("st_f_read", self.st.f_read), ("st_a_read", self.st.a_read),
            ("sys_f_read", self.sys.f_read), ("sys_f_write", self.sys.f_write),
            ("sys_a_read", self.sys.a_read), ("sys_a_write", self.sys.a_write),
        ):  # fmt: skip
            wiring.connect(m, port, getattr(buffers, name))

    def _memory(self, m: Module) -> None:
        """Channels to the masters of LD and ST; FIFOs to the engine; beats counted."""
        self.beats_read, self.beats_written = [], []
        self.beats_taken, self.starving = [], []
        for channel in range(self._channels):
            mine = self.axi[channel]
            for part in (self.ld.axi[channel], self.st.axi[channel]):
                for name, member in part.signature.members.items():
                    inner, outer = getattr(part, name), getattr(mine, name)
                    pair = (outer, inner) if member.flow == Out else (inner, outer)
                    m.d.comb += pair[0].eq(pair[1])
            weights = self.ld.weights[channel]
            wiring.connect(m, weights, self.engine.beats[channel])
            self.beats_read.append(mine.rvalid & mine.rready)
            self.beats_written.append(mine.wvalid & mine.wready)
            self.beats_taken.append(weights.valid & weights.ready)
            self.starving.append(weights.ready & ~weights.valid)

    # ------------------------------------------------------------------------ what is going on

    def _engine_owner(self, m: Module) -> None:
        """MM and MV share the engine, MM first; `owner` has the one at work (1: MV)."""
        self.running = {unit: Signal(name=f"{unit.name}_running".lower()) for unit in UNITS}
        self.owner, last = Signal(), Signal()
        mm, mv = self.running[Unit.MM], self.running[Unit.MV]
        m.d.comb += self.owner.eq(Mux(mm & mv, last, mv))
        m.d.units += last.eq(Mux(mm | mv, self.owner, 0))

    def _monitors(self, m: Module) -> None:
        ld, st, control = self.ld, self.st, self.control
        starving = Cat(self.starving).any()
        reasons: dict[Unit, dict[str, Any]] = {
            Unit.LD: {"fifo": ld.stalled, "read": ld.hungry, "beats": sum(self.beats_read)},
            Unit.ST: {"write": st.settling, "beats": sum(self.beats_written)},
            Unit.MM: {"fifo": starving & ~self.owner, "beats": Mux(
                self.owner, 0, sum(self.beats_taken))},
            Unit.MV: {"fifo": starving & self.owner, "beats": Mux(
                self.owner, sum(self.beats_taken), 0)},
            Unit.MISC: {},
            Unit.SYS: {"cores": self.sys.waiting},
        }  # fmt: skip
        self.monitors = {}
        for unit in UNITS:
            self.monitors[unit] = monitor = UnitMonitor(self._channels)
            m.submodules[f"{unit.name.lower()}_monitor"] = monitor
            queue, (_, tokens) = self.queues[unit], self._ports(unit)
            for name in tokens.signature.members:
                m.d.comb += getattr(monitor.semaphores, name).eq(getattr(tokens, name))
            for name, value in reasons[unit].items():
                m.d.comb += getattr(monitor, name).eq(value)
            m.d.comb += [
                monitor.missing.eq(getattr(self.semaphores, f"missing{unit}")),
                monitor.queued.eq(~queue.empty),
                monitor.reset.eq(control.clear),
                monitor.clear.eq(control.forget), monitor.count.eq(control.count),
                queue.started.eq(monitor.started),
                self.running[unit].eq(monitor.running),
                control.counters[unit].eq(monitor.counters),
            ]  # fmt: skip

    def _errors(self, m: Module) -> None:
        engine_unit = Mux(self.owner, Unit.MV, Unit.MM)
        units = {"engine": engine_unit} | {
            unit.name.lower(): unit.value for unit in UNITS
        }  # fmt: skip
        kinds: list[tuple[Any, Any, Any, Any]] = [
            (self.dispatcher.error, self.dispatcher.code, DISPATCHER, 0),
            (self.engine.fault, ErrorCode.FORMAT, engine_unit, 0),
            *(
                (self.buffers.outside[k], ErrorCode.BUFFER, units[user], 0)
                for k, user in enumerate(USERS)
            ),
            (self.ld.outside, ErrorCode.MEMORY, Unit.LD, self.ld.requested),
            (self.st.outside, ErrorCode.MEMORY, Unit.ST, self.st.requested),
            *(
                (part.error[channel], code, unit, channel)
                for part, code, unit in (
                    (self.ld, ErrorCode.READ, Unit.LD), (self.st, ErrorCode.WRITE, Unit.ST),
                )
                for channel in range(self._channels)
            ),
            (self.sys.fault, ErrorCode.MEETING, Unit.SYS, 0),
            (self.semaphores.overflow, ErrorCode.TOKENS, DISPATCHER, 0),
            (self.control.expired, ErrorCode.WATCHDOG, DISPATCHER, 0),
            (self.control.aborted, ErrorCode.ABORTED, DISPATCHER, 0),
        ]  # fmt: skip
        bits = len(self.dispatcher.address)
        m.submodules.errors = self.errors = latch = ErrorLatch(len(kinds), bits)
        for fault, (valid, code, unit, channel) in zip(latch.faults, kinds):
            m.d.comb += [
                fault.valid.eq(valid), fault.code.eq(code), fault.unit.eq(unit),
                fault.channel.eq(channel),
            ]  # fmt: skip
        places = [*(self.queues[unit].current for unit in UNITS), self.dispatcher.address]
        m.d.comb += [
            *(latch.addresses[k].eq(place) for k, place in enumerate(places)),
            latch.clear.eq(self.control.forget),
            self.control.failed.eq(latch.failed),
            self.control.error.eq(latch.error), self.control.error_address.eq(latch.address),
        ]  # fmt: skip

    def _state(self, m: Module) -> None:
        control, busy = self.control, Cat(self.running[unit] for unit in UNITS)
        others = [unit for unit in UNITS if unit != Unit.SYS]
        m.d.comb += [
            control.quiet.eq(self.ld.idle & self.st.idle),
            self.sys.quiet.eq(
                ~self.dispatcher.running & self.ld.idle & self.st.idle
                & ~Cat(self.running[unit] | ~self.queues[unit].empty for unit in others).any()
            ),
            control.status.units.eq(busy), control.status.halted.eq(control.halted),
            control.status.shared.eq(self.sys.waiting),
            control.moving.eq(
                self.dispatcher.moving | self.buffers.busy | self.engine.stepping
                | Cat(monitor.started | monitor.ended for monitor in self.monitors.values()).any()
                | Cat(self.beats_read + self.beats_written + self.beats_taken).any()
            ),
        ]  # fmt: skip
        with m.If(control.forget):
            m.d.sync += control.halted.eq(0)
        with m.Elif(self.sys.halted):
            m.d.sync += control.halted.eq(1)
        # What each unit waited for when the error came stays to be seen.
        for unit, monitor in self.monitors.items():
            with m.If(~self.errors.failed):
                m.d.sync += control.waits[unit].eq(monitor.waits)

    def _trace(self, m: Module) -> None:
        trace, dispatcher = self.trace, self.dispatcher
        for unit, monitor in self.monitors.items():
            mine = getattr(trace, unit.name.lower())
            m.d.comb += [
                mine.start.eq(monitor.started), mine.done.eq(monitor.ended),
                mine.address.eq(self.queues[unit].next),
            ]  # fmt: skip
            queue = getattr(dispatcher, f"queue{unit}")
            with m.If(queue.valid & queue.ready):
                m.d.comb += [trace.dispatch.valid.eq(1), trace.dispatch.unit.eq(unit)]
                m.d.comb += trace.dispatch.word.eq(queue.payload)
        m.d.comb += [
            trace.dispatch.first.eq(dispatcher.first),
            trace.dispatch.address.eq(dispatcher.address),
        ]
        numbers = {"engine": Mux(self.owner, Unit.MV, Unit.MM)} | {
            unit.name.lower(): unit.value for unit in UNITS
        }  # fmt: skip
        for name in ("f", "a"):
            seen = getattr(trace, f"{name}_write")
            written = getattr(self.buffers, f"{name}_written")
            m.d.comb += [
                getattr(seen, part).eq(getattr(written, part)) for part in seen.signature.members
            ]
            with m.Switch(written.user):
                for k, user in enumerate(USERS):
                    with m.Case(k):
                        m.d.comb += seen.user.eq(numbers[user])
