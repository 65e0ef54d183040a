"""The dispatcher: runs scalar instructions and hands the others, operands resolved, to the units.

Programs are decoded once into `Step`s with their constant operands filled in, so that an executed
instruction costs a list copy and an addition for each operand that names a register.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flightllm.spec.encoding import Op, bits_float, decode
from flightllm.spec.errors import VerifyError
from flightllm.spec.image import CoreCode
from flightllm.spec.isa import LOOP_DEPTH, REGISTERS, Instruction, Unit

__all__ = ["Dispatcher", "Step", "decode_steps", "wrap"]

HALF, WORD = 1 << 31, 0xFFFFFFFF


def wrap(value: int) -> int:
    """`value` as a signed 32-bit number, as a register holds it."""
    return ((value + HALF) & WORD) - HALF


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "sys.add": lambda a, b: wrap(a + b),
    "sys.sub": lambda a, b: wrap(a - b),
    "sys.min": min,
    "sys.max": max,
    "sys.shr": lambda a, b: a >> (b & 31),
    "sys.mul": lambda a, b: wrap(a * b),
}


class Step:
    """One decoded instruction.

    Members
    -------
    address : of its first word. kind : its entry in the instruction table.
    constants : operand values with registers at 0; raw operands are numpy float32.
    dynamic : (operand index, register) of the operands that need a register.
    flags : names that are set. wait, release : units. rd : destination register.
    match : for sys.loop and sys.end the index of the partner.
    """

    __slots__ = (
        "address", "arithmetic", "constants", "dynamic", "flags", "kind", "match", "rd", "release",
        "scalar", "unit", "wait",
    )  # fmt: skip

    def __init__(self, address: int, op: Op) -> None:
        self.address = address
        self.kind: Instruction = op.kind
        self.unit = Unit(op.kind.unit)
        self.scalar = op.kind.scalar
        self.arithmetic = _ARITHMETIC.get(op.kind.name)
        self.flags = op.flags
        self.rd = op.rd
        self.wait = tuple(int(unit) for unit in sorted(op.wait))
        self.release = tuple(int(unit) for unit in sorted(op.release))
        self.match = -1
        self.constants: list[int | np.float32] = []
        dynamic = []
        for index, operand in enumerate(op.kind.operands):
            value = op.operands[operand.name]
            if isinstance(value, int):
                self.constants.append(np.float32(bits_float(value)))
                continue
            self.constants.append(value.imm)
            if value.reg:
                dynamic.append((index, value.reg))
        self.dynamic = tuple(dynamic)

    def resolve(self, registers: Sequence[int]) -> list[int]:
        """The operand values (raw ones are float32)."""
        values = self.constants[:]
        for index, register in self.dynamic:
            values[index] = wrap(values[index] + registers[register])  # type: ignore[arg-type]
        return values  # type: ignore[return-value]

    def named(self, values: Sequence[int]) -> Mapping[str, int]:
        """Operand values by name, raw ones as their bits."""
        return {
            operand.name: int(np.float32(value).view(np.uint32)) if operand.raw else int(value)
            for operand, value in zip(self.kind.operands, values)
        }


def decode_steps(code: CoreCode, where: str) -> list[Step]:
    """Decode a core's program and match its loops.

    Raises
    ------
    VerifyError
        For a loop without an end, an end without a loop or loops nested too deep; names the word
        address.
    InputError
        When a word is no instruction.
    """
    steps: list[Step] = []
    address = 0
    open_loops: list[int] = []
    for index, op in enumerate(decode([int(word) for word in code.words])):
        step = Step(address, op)
        steps.append(step)
        if op.kind.name == "sys.loop":
            open_loops.append(index)
            if len(open_loops) > LOOP_DEPTH:
                raise VerifyError(f"{where}, word {address}: loops nest over {LOOP_DEPTH} deep")
        elif op.kind.name == "sys.end":
            if not open_loops:
                raise VerifyError(f"{where}, word {step.address}: sys.end without sys.loop")
            step.match = open_loops.pop()
            steps[step.match].match = index
        address += op.kind.words
    if open_loops:
        begin = steps[open_loops[-1]].address
        raise VerifyError(f"{where}, word {begin}: sys.loop without sys.end")
    return steps


class Dispatcher:
    """Walks a core's program.

    Parameters
    ----------
    code : words, parameters and entries. where : names the core in errors.
    """

    def __init__(self, code: CoreCode, where: str) -> None:
        self._where = where
        self._steps = decode_steps(code, where)
        self._params = [wrap(int(word)) for word in code.params]
        self._index = {step.address: number for number, step in enumerate(self._steps)}
        self._entries: dict[str, int] = {}
        for name, address in code.entries.items():
            self.enter(name, address)
        self._registers = [0] * REGISTERS
        self._loops: list[list[int]] = []  # [iterations left, index of the body]
        self._next = 0

    def enter(self, name: str, address: int) -> None:
        """Make `name` the entry point at a word address.

        Raises
        ------
        VerifyError
            When no instruction begins there.
        """
        if address not in self._index:
            raise VerifyError(f"{self._where}: entry {name!r} at word {address} is no instruction")
        self._entries[name] = self._index[address]

    def start(self, entry: str, registers: Mapping[int, int]) -> None:
        """Go to an entry point with these registers; all others are 0.

        Raises
        ------
        VerifyError
            When the program has no such entry.
        """
        if entry not in self._entries:
            raise VerifyError(f"{self._where}: the program has no entry {entry!r}")
        self._next = self._entries[entry]
        self._registers = [0] * REGISTERS
        for register, value in registers.items():
            self._registers[register] = wrap(int(value))
        self._registers[0] = 0
        self._loops = []

    def peek(self) -> Step:
        """The next instruction that goes to a unit; runs the scalar ones before it."""
        while True:
            if self._next >= len(self._steps):
                raise VerifyError(f"{self._where}: the program runs over its end without sys.halt")
            step = self._steps[self._next]
            if not step.scalar:
                return step
            self._next += 1
            self._scalar(step)

    def take(self) -> tuple[Step, list[int]]:
        """Pass the instruction `peek` gave, with its operands."""
        step = self._steps[self._next]
        self._next += 1
        return step, step.resolve(self._registers)

    def _scalar(self, step: Step) -> None:
        values = step.resolve(self._registers)
        if step.arithmetic is not None:
            self._set(step.rd, step.arithmetic(values[0], values[1]))
        elif step.kind.name == "sys.loop":
            if values[0] <= 0:
                self._next = step.match + 1
            else:
                self._loops.append([values[0], self._next])
        elif step.kind.name == "sys.end":
            loop = self._loops[-1] if self._loops else None
            if loop is None:
                raise VerifyError(f"{self._where}, word {step.address}: jumped into a loop body")
            loop[0] -= 1
            if loop[0]:
                self._next = loop[1]
            else:
                self._loops.pop()
        elif step.kind.name == "sys.param":
            self._set(step.rd, self._parameter(step, values[0]))
        else:
            raise VerifyError(f"{self._where}: {step.kind.name} is no scalar instruction")

    def _parameter(self, step: Step, index: int) -> int:
        if not 0 <= index < len(self._params):
            raise VerifyError(
                f"{self._where}, word {step.address}: parameter {index} of {len(self._params)}"
            )
        return self._params[index]

    def _set(self, register: int, value: int) -> None:
        if register:
            self._registers[register] = value
