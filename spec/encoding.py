"""Instructions as words and as text: encoder, decoder and disassembler, all from the table."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flightllm.spec.errors import InputError
from flightllm.spec.isa import (
    IMMEDIATE_BITS,
    REGISTER_BITS,
    REGISTERS,
    UNITS,
    Instruction,
    Register,
    Unit,
    by_name,
    find,
)

__all__ = ["Op", "Value", "bits_float", "decode", "disassemble", "encode", "float_bits"]

_LIMIT = 1 << (IMMEDIATE_BITS - 1)


@dataclass(frozen=True)
class Value:
    """An operand: register + immediate."""

    imm: int = 0
    reg: int = 0

    def __add__(self, more: int) -> Value:
        return Value(self.imm + more, self.reg)

    def __str__(self) -> str:
        if not self.reg:
            return str(self.imm)
        name = Register(self.reg).name.lower() if self.reg <= Register.LOGITS else f"r{self.reg}"
        return name if not self.imm else f"{name}{self.imm:+d}"


@dataclass(frozen=True)
class Op:
    """One instruction of a program.

    Members
    -------
    operands : by name; `Value`, or int bits for raw operands.
    flags : names that are set. rd : destination register, for those that write one.
    wait, release : units to wait on and to release.
    """

    kind: Instruction
    operands: Mapping[str, Value | int] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    rd: int = 0
    wait: frozenset[Unit] = frozenset()
    release: frozenset[Unit] = frozenset()

    @classmethod
    def make(cls, name: str, *flags: str, rd: int = 0, **operands: Value | int | float) -> Op:
        """Build `name`; ints become immediates, floats of raw operands become their bits."""
        kind = by_name(name)
        values: dict[str, Value | int] = {}
        for operand in kind.operands:
            given = operands.pop(operand.name)
            if operand.raw:
                values[operand.name] = float_bits(float(given))  # type: ignore[arg-type]
            elif isinstance(given, Value):
                values[operand.name] = given
            else:
                values[operand.name] = Value(int(given))
        if operands or not set(flags) <= set(kind.flags):
            raise KeyError(f"{name} has no operand or flag {sorted(operands)} {flags}")
        return cls(kind, values, frozenset(flags), rd)

    def __str__(self) -> str:
        parts = [f"{self.kind.name:14}"]
        if self.kind.writes_register:
            parts.append(f"rd=r{self.rd}")
        for operand in self.kind.operands:
            value = self.operands[operand.name]
            shown = f"{bits_float(value):.9g}" if isinstance(value, int) else str(value)
            parts.append(f"{operand.name}={shown}")
        parts += sorted(self.flags)
        for name, units in (("wait", self.wait), ("release", self.release)):
            if units:
                parts.append(f"{name}:" + "+".join(u.name.lower() for u in sorted(units)))
        return " ".join(parts).rstrip()


def float_bits(value: float) -> int:
    """The bits of `value` rounded to float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return int(bits)


def bits_float(bits: int) -> float:
    """The float32 whose bits are `bits`."""
    (value,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(value)


def _mask(units: frozenset[Unit]) -> int:
    return sum(1 << unit for unit in units)


def _units(mask: int) -> frozenset[Unit]:
    return frozenset(unit for unit in UNITS if mask >> unit & 1)


def encode(ops: Sequence[Op]) -> list[int]:
    """The words of a program.

    Raises
    ------
    InputError
        When an operand does not fit its field, or an instruction waits for its own unit; names
        instruction, operand and value.
    """
    words: list[int] = []
    for op in ops:
        kind = op.kind
        if kind.unit in op.wait | op.release:
            raise InputError(f"{kind.name}: a unit cannot wait for itself or release itself")
        if not 0 <= op.rd < (REGISTERS if kind.writes_register else 1):
            raise InputError(f"{kind.name}: it has no destination register {op.rd}")
        high = op.rd
        for bit, name in enumerate(kind.flags):
            high |= (name in op.flags) << bit
        words.append(
            kind.unit | kind.function << 4 | _mask(op.wait) << 8 | _mask(op.release) << 14
            | high << 20
        )  # fmt: skip
        for operand in kind.operands:
            value = op.operands[operand.name]
            if isinstance(value, int):
                words.append(value & 0xFFFFFFFF)
                continue
            if not -_LIMIT <= value.imm < _LIMIT or not 0 <= value.reg < REGISTERS:
                raise InputError(
                    f"{kind.name}.{operand.name}: {value} does not fit {IMMEDIATE_BITS} bits"
                )
            words.append(value.reg << IMMEDIATE_BITS | value.imm & (2 * _LIMIT - 1))
    return words


def decode(words: Sequence[int]) -> list[Op]:
    """The instructions of a program.

    Raises
    ------
    InputError
        When a word is no instruction, has reserved bits set or the last instruction is cut short;
        names the word.
    """
    return [op for _, op in _decode(words)]


def _decode(words: Sequence[int]) -> Iterator[tuple[int, Op]]:
    at = 0
    while at < len(words):
        head = int(words[at])
        try:
            kind = find(head & 15, head >> 4 & 15)
        except InputError as error:
            raise InputError(f"word {at}: {error}") from None
        if at + kind.words > len(words):
            raise InputError(f"word {at}: {kind.name} is cut short")
        operands: dict[str, Value | int] = {}
        for operand, word in zip(kind.operands, words[at + 1 : at + kind.words]):
            bits = int(word)
            imm = (bits & (2 * _LIMIT - 1) ^ _LIMIT) - _LIMIT
            operands[operand.name] = bits if operand.raw else Value(imm, bits >> IMMEDIATE_BITS)
        high = head >> 20
        wait, release = _units(head >> 8 & 63), _units(head >> 14 & 63)
        used = REGISTER_BITS if kind.writes_register else len(kind.flags)
        if high >> used or kind.unit in wait | release:
            raise InputError(f"word {at}: {kind.name} has reserved bits set")
        flags = frozenset(name for bit, name in enumerate(kind.flags) if high >> bit & 1)
        rd = high & 31 if kind.writes_register else 0
        yield at, Op(kind, operands, flags, rd, wait, release)
        at += kind.words


def disassemble(words: Sequence[int]) -> str:
    """A listing: word address, then the instruction; loop bodies are indented."""
    lines, depth = [], 0
    for at, op in _decode(words):
        depth -= op.kind.name == "sys.end"
        lines.append(f"{at:5d}  {'  ' * max(depth, 0)}{op}")
        depth += op.kind.name == "sys.loop"
    return "\n".join(lines) + "\n"
