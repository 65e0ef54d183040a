"""What a device's status registers say, as a sentence: which unit, where, waiting for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flightllm.spec.errors import InputError
from flightllm.spec.isa import UNITS, find
from flightllm.spec.registers import (
    CORE_REGISTERS,
    DEVICE_REGISTERS,
    ERRORS,
    ErrorCode,
    HostRegister,
)

__all__ = ["ReadRegister", "explain"]

_REGISTERS: dict[str, HostRegister] = {
    register.name: register for register in (*DEVICE_REGISTERS, *CORE_REGISTERS)
}
_WITH_CHANNEL = (ErrorCode.MEMORY, ErrorCode.READ, ErrorCode.WRITE)
_REASONS = {
    "read": "data of a memory read",
    "write": "the answer to a memory write",
    "cores": "the other cores",
}


class ReadRegister(Protocol):
    """Reads a register by name."""

    def __call__(self, name: str, index: int = 0, core: int = 0) -> int:
        """The value of register `name`."""


def explain(read: ReadRegister, cores: int, programs: Sequence[Sequence[int]] = ()) -> str:
    """What stopped the device, or what its units wait for.

    Parameters
    ----------
    cores : of the device.
    programs : words of each core's program, by which instructions are named; may be left out.
    """
    status, flags = read("STATUS"), _REGISTERS["STATUS"]
    if flags.field("error").of(status):
        core = flags.field("core").of(status)
        return _error(read, core, programs[core] if core < len(programs) else ())
    if flags.field("aborted").of(status):
        return "the run was aborted"
    parts = [_waits(read, core) for core in range(cores)]
    return "; ".join(part for part in parts if part) or "no unit waits for anything"


def _error(read: ReadRegister, core: int, words: Sequence[int]) -> str:
    register, value = _REGISTERS["ERROR"], read("ERROR", core=core)
    if register.field("code").of(value) == ErrorCode.WATCHDOG:  # nobody's own error
        waits = _waits(read, core) or f"core {core}: no unit waits for anything"
        return f"nothing moved for {read('WATCHDOG')} cycles: {waits}"
    number, place = register.field("code").of(value), register.field("unit").of(value)
    address = read("ERROR_ADDRESS", core=core)
    unit = UNITS[place].name if place < len(UNITS) else "the dispatcher"
    where = f"core {core}, {unit} at word {address}{_name(words, address)}"
    if number not in {code.value for code in ErrorCode}:
        return f"{where}: error code {number}"
    code = ErrorCode(number)
    text = f"{where}: {ERRORS[code]}"
    if code in _WITH_CHANNEL:
        text += f" (channel {register.field('channel').of(value)})"
    return text


def _name(words: Sequence[int], address: int) -> str:
    """The name of the instruction at a word address, in brackets."""
    if not 0 <= address < len(words):
        return ""
    word = int(words[address])
    try:
        return f" ({find(word & 15, word >> 4 & 15).name})"
    except InputError:
        return ""


def _waits(read: ReadRegister, core: int) -> str:
    """What the units of a core wait for; empty when all are idle."""
    register, found = _REGISTERS["WAITS"], []
    for place, unit in enumerate(UNITS):
        value = read("WAITS", place, core)
        if register.field("idle").of(value):
            continue
        owed = register.field("tokens").of(value)
        reasons = [f"a token from {other.name}" for other in UNITS if owed >> other & 1]
        if register.field("fifo").of(value):
            full = unit.name == "LD"
            reasons.append("room in the weight FIFO" if full else "data in the weight FIFO")
        reasons += [text for name, text in _REASONS.items() if register.field(name).of(value)]
        if reasons:
            found.append(f"{unit.name} waits for {' and '.join(reasons)}")
    return f"core {core}: " + "; ".join(found) if found else ""
