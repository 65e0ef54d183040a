"""The register-level model of a simulated card, against docs/registers.md."""

from __future__ import annotations

import numpy as np
import pytest
from hand_program import board, chain, linked

from flightllm.sim.board.functional import CoreError, FunctionalBus
from flightllm.spec.config import load_config
from flightllm.spec.encoding import Op, Value, encode
from flightllm.spec.isa import UNITS, Unit
from flightllm.spec.registers import (
    CORE_REGISTERS,
    DEVICE_REGISTERS,
    IDENTIFICATION,
    Access,
    ErrorCode,
    address,
)

BUSY, DONE, ERROR, ABORTED = 1, 2, 4, 8
TINY = load_config("tiny")


def imm(**values: int) -> dict[str, Value]:
    return {name: Value(value) for name, value in values.items()}


def bus_with(ops, config=None) -> FunctionalBus:
    """A card that holds these instructions on every core."""
    bus = FunctionalBus(config or TINY)
    first = 0
    for core, channels in enumerate(bus.config.channels):
        for channel in range(channels):
            base = (first + channel) * bus.config.channel_bytes
            bus.write(address("CHANNEL_BASE_LOW", channel, core), base & 0xFFFFFFFF)
            bus.write(address("CHANNEL_BASE_HIGH", channel, core), base >> 32)
        first += channels
        bus.write(address("MEMORY_ADDRESS", core=core), 0)
        for word in encode(ops):
            bus.write(address("MEMORY_DATA", core=core), word)
    return bus


def run(bus: FunctionalBus, entry: int = 0) -> int:
    for core in range(bus.config.cores):
        bus.write(address("ENTRY", core=core), entry)
    bus.write(address("CONTROL"), 1)
    for _ in range(1000):
        status = bus.read(address("STATUS"))
        if not status & BUSY:
            return status
    return status


def test_it_says_what_it_is() -> None:
    bus = FunctionalBus(load_config("tiny-2core"))
    assert bus.read(address("ID")) == IDENTIFICATION
    assert bus.read(address("SHAPE")) & 0xFF == 2
    words = [f"{bus.read(address('CONFIG_DIGEST', i)):08x}" for i in range(8)]
    assert "".join(words) == bus.config.digest


def test_registers_hold_what_their_access_says() -> None:
    bus = FunctionalBus(TINY)
    for register in (*DEVICE_REGISTERS, *CORE_REGISTERS):
        if register.name in ("MEMORY_DATA", "CONTROL", "INTERRUPT_STATUS"):
            continue
        place = address(register.name, register.count - 1)
        before = bus.read(place)
        bus.write(place, 0x12345678)
        held = 0x12345678 if register.access is Access.WRITE else before
        assert bus.read(place) == held, register.name
    bus.write(0xFFC, 7)  # no register
    assert bus.read(0xFFC) == 0
    assert bus.read(address("ENTRY", core=1)) == 0  # a core that there is not


def test_program_and_parameter_memory_move_on() -> None:
    bus = FunctionalBus(TINY)
    place, data = address("MEMORY_ADDRESS"), address("MEMORY_DATA")
    for start in (5, 1 << 31 | 7):
        bus.write(place, start)
        for word in (1, 2, 0xFFFFFFFF):
            bus.write(data, word)
        assert bus.read(place) == start + 3
        bus.write(place, start)
        assert [bus.read(data) for _ in range(4)] == [1, 2, 0xFFFFFFFF, 0]
    bus.write(place, TINY.program_words)
    bus.write(data, 9)  # outside: ignored
    assert bus.read(data) == 0


def test_a_run_ends_with_done_and_an_event() -> None:
    bus = bus_with(chain([Op.make("ld.nop")]))
    assert run(bus) == DONE
    assert bus.read(address("INTERRUPT_STATUS")) == 1
    bus.write(address("INTERRUPT_STATUS"), 1)
    assert bus.read(address("INTERRUPT_STATUS")) == 0
    assert bus.read(address("COUNT_INSTRUCTIONS", Unit.LD)) == 1


def test_memory_lies_behind_the_bases() -> None:
    config = board((2,))
    ops = chain([
        Op.make("ld.vec", **imm(addr=1, dst=0, n=4, count=1, mstride=0, dstride=0)),
        Op.make("st.vec", **imm(addr=2, src=0, n=4, count=1, mstride=0, sstride=0)),
    ])  # fmt: skip
    bus = bus_with(ops, config)
    offset = 0x2000
    for channel in range(2):
        base = channel * config.channel_bytes + offset
        bus.write(address("CHANNEL_BASE_LOW", channel), base)
        bus.store(base + 64, np.array([channel + 1, 7], np.float32).tobytes())
    assert run(bus) == DONE
    for channel in range(2):
        base = channel * config.channel_bytes + offset
        assert bus.fetch(base + 128, 8) == np.array([channel + 1, 7], np.float32).tobytes()


def test_a_wild_base_or_entry_is_an_error_of_the_program() -> None:
    for spoil in (
        lambda bus: bus.write(address("CHANNEL_BASE_LOW", 1), 64),
        lambda bus: bus.write(address("ENTRY"), 3000),
    ):
        bus = bus_with(chain([Op.make("ld.nop")]))
        spoil(bus)
        bus.write(address("CONTROL"), 1)
        assert bus.read(address("STATUS")) == ERROR
        assert bus.read(address("ERROR")) & 0xFF == ErrorCode.PROGRAM


def test_an_error_tells_core_unit_code_and_word() -> None:
    bad = Op.make("ld.vec", **imm(addr=1 << 22, dst=0, n=64, count=1, mstride=0, dstride=0))
    bus = bus_with(chain([Op.make("misc.nop"), bad]), load_config("tiny-2core"))
    status = run(bus)
    assert status & 0xFF == ERROR and status >> 8 & 0xFF == 0
    error = bus.read(address("ERROR"))
    assert (error & 0xFF, error >> 8 & 0xF) == (ErrorCode.MEMORY, Unit.LD)
    assert bus.read(address("ERROR_ADDRESS")) == 1
    assert bus.read(address("ERROR", core=1)) == 0


def test_a_deadlock_trips_the_watchdog_if_it_is_set() -> None:
    ops = [linked(Op.make("st.nop"), wait=[Unit.MM]), linked(Op.make("sys.halt"), wait=[Unit.ST])]
    bus = bus_with(ops)
    assert run(bus) == BUSY
    assert bus.read(address("WAITS", Unit.ST)) == 1 << Unit.MM
    assert bus.read(address("WAITS", Unit.LD)) == 1 << 12
    bus.write(address("CONTROL"), 4)
    assert bus.read(address("STATUS")) == 0
    bus.write(address("WATCHDOG"), 100)
    assert run(bus) == ERROR
    assert bus.read(address("ERROR")) == ErrorCode.WATCHDOG | Unit.ST << 8


def test_abort_and_reset_end_a_run_anywhere() -> None:
    ops = chain([Op.make("ld.nop")] * 200)
    bus = bus_with(ops)
    bus.write(address("CONTROL"), 1)
    assert bus.read(address("STATUS")) == BUSY
    bus.write(address("CONTROL"), 2)
    assert bus.read(address("STATUS")) == ABORTED
    assert run(bus) == DONE


def test_while_busy_starts_and_program_writes_are_ignored() -> None:
    bus = bus_with(chain([Op.make("ld.nop")] * 200))
    bus.write(address("CONTROL"), 1)
    bus.write(address("MEMORY_ADDRESS"), 0)
    bus.write(address("MEMORY_DATA"), 0xFFFFFFFF)
    bus.write(address("CONTROL"), 1)
    while bus.read(address("STATUS")) & BUSY:
        pass
    assert bus.read(address("COUNT_INSTRUCTIONS", Unit.LD)) == 200
    assert run(bus) == DONE


def test_injected_faults_show_in_the_registers() -> None:
    bus = bus_with(chain([Op.make("ld.nop")]))
    bus.stalled[0, Unit.LD] = 1 << 9
    assert run(bus) == BUSY
    assert bus.read(address("WAITS", Unit.LD)) == 1 << 9
    bus.stalled.clear()
    bus.failing[0] = CoreError(ErrorCode.READ, Unit.LD, 4, 1)
    assert bus.read(address("STATUS")) == ERROR
    assert bus.read(address("ERROR")) == ErrorCode.READ | Unit.LD << 8 | 1 << 16
    bus.power_cycle()
    assert all(bus.read(address("COUNT_INSTRUCTIONS", unit)) == 0 for unit in UNITS)
    with pytest.raises(IndexError):
        bus.fetch(TINY.channel_bytes * 2, 4)  # past the last bank
