"""The front end of every unit: collects an instruction's words, gets its tokens, starts it.

While an instruction runs, the words of the next are collected, so a unit that is handed
instructions faster than it executes them starts one the cycle after the last is done.
"""

from typing import Any

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from flightllm.spec.isa import INSTRUCTIONS, UNITS, Instruction, Unit

__all__ = ["HEADER", "UnitFrontEnd", "semaphore_signature", "unit_instructions"]

HEADER = data.StructLayout(
    {"opcode": 4, "function": 4, "wait": len(UNITS), "release": len(UNITS), "flags": 12}
)
"""Word 0 of an instruction, low bits first."""

semaphore_signature = wiring.Signature(
    {
        "wait": Out(len(UNITS)),
        "waiting": Out(1),
        "granted": In(1),
        "release": Out(len(UNITS)),
        "done": Out(1),
    }
)
"""A unit's side of the semaphores.

`waiting` asks for one token of each unit in `wait`; they are taken in the cycle in which `granted`
is high too. `done` gives one token to each unit in `release`; the semaphores always take it.
"""


def unit_instructions(unit: Unit) -> list[Instruction]:
    """Instructions that go to a unit's queue."""
    return [entry for entry in INSTRUCTIONS if entry.unit == unit and not entry.scalar]


class UnitFrontEnd(wiring.Component):
    """Collects one instruction ahead.

    Parameters
    ----------
    unit : whose instructions arrive.

    Members
    -------
    queue : In, words of instructions, header first. semaphores : to `Semaphores`.
    function, flags : of the running instruction. start : a pulse when it starts; `operands` hold
    until `done`. done : In, the unit's pulse when the instruction's last result is visible; not in
    the cycle of `start`. busy : between start and done. idle : nothing runs, nothing waits.
    complete : Out, the next instruction is collected; next_function, next_operands : of it.
    Operand `i` (32 bits) of the running instruction is ``operands[i]``; `operand` finds it by name.
    """

    def __init__(self, unit: Unit) -> None:
        self._instructions = unit_instructions(unit)
        self._words = max(entry.words for entry in self._instructions) - 1
        super().__init__(
            {
                "queue": In(stream.Signature(32)),
                "semaphores": Out(semaphore_signature),
                "function": Out(4),
                "flags": Out(12),
                "operands": Out(data.ArrayLayout(32, max(self._words, 1))),
                "complete": Out(1),
                "next_function": Out(4),
                "next_operands": Out(data.ArrayLayout(32, max(self._words, 1))),
                "start": Out(1),
                "done": In(1),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def operand(self, instruction: str, name: str, coming: bool = False) -> Any:
        """The operand called `name` while `instruction` runs, or when it is the next."""
        kind = next(entry for entry in self._instructions if entry.name == instruction)
        place = [operand.name for operand in kind.operands].index(name)
        return (self.next_operands if coming else self.operands)[place]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        counts = Array([0] * 16)
        for entry in self._instructions:
            counts[entry.function] = entry.words - 1
        header, next_header = Signal(HEADER), Signal(HEADER)
        collected, missing = Signal(self.operands.shape()), Signal(range(self._words + 1))
        place = Signal(range(self._words + 1))
        have_header, complete = Signal(), self.complete
        m.d.comb += [
            complete.eq(have_header & (missing == 0)),
            self.next_function.eq(next_header.function),
            self.next_operands.eq(collected),
        ]

        ready = Signal()  # the collected instruction can move into the running one's place
        m.d.comb += [
            ready.eq(~self.busy | self.done),
            self.semaphores.wait.eq(next_header.wait),
            self.semaphores.waiting.eq(complete & ready),
            self.semaphores.release.eq(header.release),
            self.semaphores.done.eq(self.busy & self.done),
            self.queue.ready.eq(~complete),
        ]
        taken = Signal()
        m.d.comb += taken.eq(self.semaphores.waiting & self.semaphores.granted)
        m.d.sync += self.start.eq(taken)
        with m.If(self.done):
            m.d.sync += self.busy.eq(0)
        with m.If(taken):
            m.d.sync += [
                self.busy.eq(1),
                header.eq(next_header),
                self.operands.eq(collected),
                have_header.eq(0),
            ]
        with m.If(self.queue.valid & self.queue.ready):
            with m.If(have_header):
                with m.Switch(place):
                    for index in range(self._words):
                        with m.Case(index):
                            m.d.sync += collected[index].eq(self.queue.payload)
                m.d.sync += [place.eq(place + 1), missing.eq(missing - 1)]
            with m.Else():
                word = data.View(HEADER, self.queue.payload)
                m.d.sync += [
                    next_header.eq(self.queue.payload),
                    have_header.eq(1),
                    place.eq(0),
                    missing.eq(counts[word.function]),
                ]
        m.d.comb += [
            self.function.eq(header.function), self.flags.eq(header.flags),
            self.idle.eq(~self.busy & ~have_header & ~self.queue.valid),
        ]  # fmt: skip
        return m
