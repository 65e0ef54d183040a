"""The host registers in front of the functional simulator: what a simulated card holds.

A register-level model of docs/registers.md. It knows no segments: memory is what the channels'
banks hold, instructions are what came through MEMORY_DATA, and a run goes on a little each time
that STATUS is read, so that a host can interrupt it anywhere.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.machine import DeadlockError, LocatedError, Machine
from flightllm.spec.config import HwConfig
from flightllm.spec.errors import FlightError, InputError
from flightllm.spec.image import CoreCode, ModelFacts, Program, Segment
from flightllm.spec.isa import UNITS, Register, Unit
from flightllm.spec.registers import (
    CORE_REGISTERS,
    CORE_WINDOW,
    DEVICE_REGISTERS,
    IDENTIFICATION,
    MAP_VERSION,
    Access,
    ErrorCode,
    HostRegister,
    address,
)

__all__ = ["CoreError", "FunctionalBus"]

STEPS_A_LOOK = 64
"""Steps of the schedule that a run takes each time STATUS is read."""
DISPATCHER = 15

_NO_MODEL = ModelFacts("card", 0, 0, None, (), 0, 0, 0, 0, 0, 0, ())
_REGISTERS = {register.name: register for register in (*DEVICE_REGISTERS, *CORE_REGISTERS)}
_PLACES: tuple[dict[int, tuple[HostRegister, int]], ...] = tuple(
    {
        register.offset + index * register.stride: (register, index)
        for register in registers
        for index in range(register.count)
    }
    for registers in (DEVICE_REGISTERS, CORE_REGISTERS)
)
"""Registers by their offset in the device's window and in a core's."""
_PARAMS = _REGISTERS["MEMORY_ADDRESS"].field("params")


def _mask(register: str, field: str) -> int:
    return _REGISTERS[register].field(field).mask


@dataclass(frozen=True)
class CoreError:
    """What ERROR and ERROR_ADDRESS of a core hold."""

    code: ErrorCode
    unit: int = DISPATCHER
    address: int = 0
    channel: int = 0


def _arena(rows: int, size: int) -> NDArray[np.uint8]:
    """Zeros uint8 [rows, size] that take memory only where they are written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, rows * size, flags), np.uint8).reshape(rows, size)


class FunctionalBus:
    """A design's registers and memory; see `flightllm.sim.board.device.Bus`.

    Parameters
    ----------
    config : the design.

    Members
    -------
    memory : uint8 [channels of all cores, bytes of a channel].
    stalled : value of WAITS by (core, unit): while set, runs make no progress and say this.
    failing : error by core: while set, runs end with it.
    """

    def __init__(self, config: HwConfig) -> None:
        self.config = config
        self.memory = _arena(sum(config.channels), config.channel_bytes)
        self.stalled: dict[tuple[int, int], int] = {}
        self.failing: dict[int, CoreError] = {}
        self._first = np.cumsum([0, *config.channels]).tolist()
        self.power_cycle()

    def power_cycle(self) -> None:
        """Lose everything, as a card does that is reset by someone else."""
        config = self.config
        self.memory[:] = 0
        self._values: dict[int, int] = {}
        self._words = [
            [np.zeros(size, np.uint32) for size in (config.program_words, config.param_words)]
            for _ in range(config.cores)
        ]
        self._used = [[0, 0] for _ in range(config.cores)]
        self._clear()

    def _clear(self) -> None:
        self._machine: Machine | None = None
        self._run: Iterator[None] | None = None
        self._status = self._events = 0
        self._errors: dict[int, CoreError] = {}
        self._waits: dict[tuple[int, int], int] = {}

    # ------------------------------------------------------------------------- the bus

    def store(self, address: int, data: bytes) -> None:
        """Write memory."""
        row, at = divmod(address, self.config.channel_bytes)
        self.memory[row, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def fetch(self, address: int, size: int) -> bytes:
        """Read memory."""
        row, at = divmod(address, self.config.channel_bytes)
        return self.memory[row, at : at + size].tobytes()

    def close(self) -> None:
        """Nothing runs outside this process."""

    def _find(self, offset: int) -> tuple[HostRegister, int, int] | None:
        window, place = divmod(offset, CORE_WINDOW)
        if window > self.config.cores:
            return None
        found = _PLACES[window > 0].get(place)
        return None if found is None else (*found, window - 1)

    def read(self, offset: int) -> int:
        """A register; 0 where there is none."""
        found = self._find(offset)
        if found is None:
            return 0
        register, index, core = found
        if register.name == "MEMORY_DATA":
            return self._memory_data(core, None)
        if register.access is Access.WRITE:
            return self._values.get(offset, 0)
        return self._state(register.name, index, core)

    def write(self, offset: int, value: int) -> None:
        """Write a register; ignored where there is none."""
        found = self._find(offset)
        if found is None:
            return
        register, _, core = found
        if register.name == "MEMORY_DATA":
            self._memory_data(core, value)
        elif register.name == "CONTROL":
            self._control(value)
        elif register.access is Access.WRITE:
            self._values[offset] = value & 0xFFFFFFFF
        elif register.access is Access.CLEAR:
            self._events &= ~value

    # ------------------------------------------------------------------------- registers

    def _state(self, name: str, index: int, core: int) -> int:
        """A register that only the device changes."""
        if name == "STATUS":
            self._advance()
            return self._status
        if name == "SHAPE":
            return self.config.cores | len(UNITS) << 8 | self.config.top_k << 16
        if name == "CONFIG_DIGEST":
            return int(self.config.digest[8 * index : 8 * index + 8], 16)
        if name == "ERROR":
            error = self._errors.get(core, CoreError(ErrorCode.NONE, 0))
            return error.code | error.unit << 8 | error.channel << 16
        if name == "ERROR_ADDRESS":
            return self._errors.get(core, CoreError(ErrorCode.NONE)).address
        if name == "WAITS":
            idle = _mask("WAITS", "idle")
            return self.stalled.get((core, index), self._waits.get((core, index), idle))
        if name == "COUNT_INSTRUCTIONS":
            return 0 if self._machine is None else self._machine.cores[core].executed[index]
        fixed = {"ID": IDENTIFICATION, "VERSION": MAP_VERSION, "INTERRUPT_STATUS": self._events}
        return fixed.get(name, 0)  # this model knows no time: cycles and cycle counters read 0

    def _memory_data(self, core: int, value: int | None) -> int:
        """Write (or with None read) the word at MEMORY_ADDRESS, which moves on."""
        place = address("MEMORY_ADDRESS", core=core)
        pointer = self._values.get(place, 0)
        kind, word = _PARAMS.of(pointer), pointer & ~_PARAMS.mask
        words, out = self._words[core][kind], 0
        if word < len(words) and self._run is None:
            out = int(words[word])
            if value is not None:
                words[word] = value & 0xFFFFFFFF
                self._used[core][kind] = max(self._used[core][kind], word + 1)
                self._machine = None
        self._values[place] = pointer + 1
        return out

    # ------------------------------------------------------------------------- runs

    def _control(self, value: int) -> None:
        if value & (_mask("CONTROL", "reset") | _mask("CONTROL", "abort")):
            ended = _mask("STATUS", "aborted") if value & _mask("CONTROL", "abort") else 0
            self._clear()
            self._finish(ended)
        elif value & _mask("CONTROL", "start") and self._run is None:
            self._start()

    def _start(self) -> None:
        self._errors, self._waits = {}, {}
        self._status = _mask("STATUS", "busy")
        registers = {
            int(register): self._signed(register.name)
            for register in (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
        }
        try:
            entries = [self._values.get(address("ENTRY", core=c), 0) for c in self._cores()]
            self._machine = self._machine or Machine(self._program(), None, 0)
            for core, entry in zip(self._machine.cores, entries):
                core.dispatcher.enter("run", entry)
            self._run = self._machine.steps("run", registers)
        except FlightError:
            self._fail(0, CoreError(ErrorCode.PROGRAM))

    def _signed(self, name: str) -> int:
        value = self._values.get(address(name), 0)
        return value - ((value & 1 << 31) << 1)

    def _cores(self) -> range:
        return range(self.config.cores)

    def _program(self) -> Program:
        """What the card holds, as a program; a core's memory behind its bases is one segment."""
        codes: list[CoreCode] = []
        segments: list[Segment] = []
        image: dict[tuple[int, str], Callable[[], NDArray[np.uint8]]] = {}
        for core in self._cores():
            words, params = (
                memory[:used] for memory, used in zip(self._words[core], self._used[core])
            )
            codes.append(CoreCode(words, params, {}))
            rows = slice(self._first[core], self._first[core + 1])
            base = self._base(core)
            size = self.config.channel_bytes - base
            segments.append(Segment("ram", core, 0, size, True))
            view = self.memory[rows, base:]
            image[core, "ram"] = partial(np.asarray, view)
        return Program(self.config, _NO_MODEL, codes, segments, image)

    def _base(self, core: int) -> int:
        """Where in its banks a core's memory begins: the same place in each."""
        bases = []
        for channel in range(self.config.channels[core]):
            low, high = (
                self._values.get(address(f"CHANNEL_BASE_{half}", channel, core), 0)
                for half in ("LOW", "HIGH")
            )
            bank = (self._first[core] + channel) * self.config.channel_bytes
            bases.append((high << 32 | low) - bank)
        offset: int = bases[0]
        if len(set(bases)) > 1 or not 0 <= offset < self.config.channel_bytes:
            raise InputError(f"core {core}: the bases of its channels are not alike: {bases}")
        return offset

    def _advance(self) -> None:
        if self._run is None or self.stalled:
            return
        for core, error in self.failing.items():
            self._fail(core, error)
            return
        try:
            for _ in range(STEPS_A_LOOK):
                next(self._run)
        except StopIteration:
            self._finish(_mask("STATUS", "done"))
        except DeadlockError:
            self._deadlock()
        except LocatedError as error:
            self._fail(error.core, _located(error))
        except FlightError:
            self._fail(0, CoreError(ErrorCode.PROGRAM))

    def _finish(self, event: int) -> None:
        self._run, self._status = None, event
        self._events |= event >> 1  # the events lie one bit lower in INTERRUPT_STATUS

    def _fail(self, core: int, error: CoreError) -> None:
        self._errors[core] = error
        self._finish(_mask("STATUS", "error"))
        self._status |= core << _REGISTERS["STATUS"].field("core").low
        self._machine = None

    def _deadlock(self) -> None:
        """Units wait for each other: the watchdog ends it, if it is set."""
        assert self._machine is not None
        for core in self._cores():
            for unit in UNITS:
                self._waits[core, int(unit)] = _waits(self._machine, core, unit)
        if self._values.get(address("WATCHDOG"), 0):
            idle = _mask("WAITS", "idle")
            core, place = next(key for key, waits in self._waits.items() if not waits & idle)
            self._fail(core, CoreError(ErrorCode.WATCHDOG, place))
        else:
            self._run = repeat(None)  # nothing will ever happen


def _located(error: LocatedError) -> CoreError:
    """The code that hardware would give: by what kind of thing the handler refused."""
    unit = Unit(error.step.unit)
    code = ErrorCode.MEMORY if unit in (Unit.LD, Unit.ST) else ErrorCode.BUFFER
    if isinstance(error.cause, InputError):
        code = ErrorCode.FORMAT
    return CoreError(code, int(unit), error.step.address)


def _waits(machine: Machine, core: int, unit: Unit) -> int:
    """WAITS of a unit that cannot go on."""
    state = machine.cores[core]
    queue = state.queues[unit]
    if not queue:
        return _mask("WAITS", "idle")
    owed = sum(1 << other for other in queue[0][0].wait if not state.tokens[unit][other])
    if owed:
        return owed
    return _mask("WAITS", "cores" if unit == Unit.SYS else "fifo")
