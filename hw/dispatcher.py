"""The dispatcher: walks the program, runs scalar instructions, hands the others to their units.

One word a cycle: an operand's register is added to its immediate as the word passes. Scalar
instructions take their words' cycles and one more. A loop with a count of zero is skipped by
walking over its body.
"""

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from flightllm.hw.frontend import HEADER
from flightllm.spec.isa import IMMEDIATE_BITS, INSTRUCTIONS, REGISTERS, UNITS, Register, by_name

__all__ = ["Dispatcher"]

LOOP_DEPTH = 6
HOST_REGISTERS = (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)


def _code(name: str) -> int:
    """Low byte of an instruction's header: opcode and function."""
    entry = by_name(name)
    return entry.unit | entry.function << 4


class Dispatcher(wiring.Component):
    """One core's program walker.

    Parameters
    ----------
    program_words, param_words : depths of the two memories.

    Members
    -------
    start : In, a pulse: begin at `entry` with the host's registers, all others 0.
    pos, ntok, steps, logits : In, the host's registers.
    queue0 .. queue5 : Out, word streams to the units, in the order of `spec.isa.Unit`.
    program, params : In, host write ports (address, data, enable).
    running : Out, until sys.halt has been handed to SYS.
    error : Out, sticky: a word is no instruction, loops nest too deep or end without a start.
    """

    def __init__(self, program_words: int, param_words: int) -> None:
        self._depths = program_words, param_words

        def port(depth: int) -> Any:
            return wiring.Signature(
                {"address": Out(range(depth)), "data": Out(32), "enable": Out(1)}
            )

        queues = {f"queue{unit}": Out(stream.Signature(32)) for unit in UNITS}
        super().__init__(
            {
                "start": In(1),
                "entry": In(range(program_words)),
                **{name.name.lower(): In(32) for name in HOST_REGISTERS},
                **queues,
                "program": In(port(program_words)),
                "params": In(port(param_words)),
                "running": Out(1),
                "error": Out(1),
            }
        )

    def _memory(self, m: Module, name: str, depth: int, port: Any) -> Any:
        """A 32-bit memory with the host's write port; its read port (one cycle)."""
        m.submodules[name] = memory = Memory(shape=32, depth=depth, init=[])
        write = memory.write_port()
        m.d.comb += [
            write.addr.eq(port.address), write.data.eq(port.data), write.en.eq(port.enable),
        ]  # fmt: skip
        return memory.read_port()

    def _registers(self, m: Module) -> tuple[Any, Any, Any]:
        """The register file: asynchronous read address and data, write port."""
        m.submodules.registers = memory = Memory(shape=32, depth=REGISTERS, init=[])
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        return read.addr, read.data, write

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        fetch = self._memory(m, "program_memory", self._depths[0], self.program)
        param = self._memory(m, "param_memory", self._depths[1], self.params)
        source, value, write = self._registers(m)

        counts, raws, known = Array([0] * 256), Array([0] * 256), Array([0] * 256)
        for entry in INSTRUCTIONS:
            code = entry.unit | entry.function << 4
            counts[code], known[code] = entry.words - 1, 1
            raws[code] = sum(op.raw << i for i, op in enumerate(entry.operands))
        scalars = [_code(e.name) for e in INSTRUCTIONS if e.scalar]

        pc, word, have = Signal(range(self._depths[0])), Signal(32), Signal()
        take, jump, target = Signal(), Signal(), Signal.like(pc)
        self._fetcher(m, fetch, pc, word, have, take, jump, target)

        header = Signal(HEADER)
        code = Signal(8)
        left, raw = Signal(5), Signal(32)
        operands = Signal(data.ArrayLayout(32, 2))
        index, skipping = Signal(1), Signal(range(LOOP_DEPTH + 2))
        resolved = Signal(32)
        immediate = word[:IMMEDIATE_BITS].as_signed()
        m.d.comb += [
            source.eq(word[IMMEDIATE_BITS:]),
            resolved.eq(
                Mux(raw[0], word, immediate + Mux(source == 0, Const(0, 32), value))
            ),
            code.eq(Cat(header.opcode, header.function)),
        ]
        depth = Signal(range(LOOP_DEPTH + 1))
        bodies = Array(Signal.like(pc, name=f"body{i}") for i in range(LOOP_DEPTH))
        remaining = Array(Signal(32, name=f"remaining{i}") for i in range(LOOP_DEPTH))

        queue_ready = Array(getattr(self, f"queue{unit}").ready for unit in UNITS)
        send, unit = Signal(), Signal(4)
        for number in UNITS:
            queue = getattr(self, f"queue{number}")
            m.d.comb += [
                queue.valid.eq(send & (unit == number)),
                queue.payload.eq(resolved),
            ]
        sent = Signal()
        m.d.comb += sent.eq(send & queue_ready[unit])
        first = data.View(HEADER, word)
        code0 = word[:8]
        clearing = Signal(range(REGISTERS))

        with m.FSM():
            with m.State("idle"), m.If(self.start):
                m.d.comb += [jump.eq(1), target.eq(self.entry)]
                m.d.sync += [clearing.eq(0), self.running.eq(1), depth.eq(0),
                             skipping.eq(0), self.error.eq(0)]  # fmt: skip
                m.next = "clear"
            with m.State("clear"):
                m.d.comb += [write.en.eq(1), write.addr.eq(clearing), write.data.eq(0)]
                with m.Switch(clearing):
                    for name in HOST_REGISTERS:
                        with m.Case(name):
                            m.d.comb += write.data.eq(getattr(self, name.name.lower()))
                m.d.sync += clearing.eq(clearing + 1)
                with m.If(clearing == REGISTERS - 1):
                    m.next = "header"
            with m.State("header"):
                scalar = Cat(code0 == c for c in scalars).any() & (known[code0] != 0)
                m.d.comb += unit.eq(first.opcode)
                with m.If(have & (known[code0] == 0)):
                    m.d.sync += [self.error.eq(1), self.running.eq(0)]
                    m.next = "idle"
                with m.Elif(have):
                    for number in UNITS:
                        m.d.comb += getattr(self, f"queue{number}").payload.eq(word)
                    m.d.comb += send.eq(~scalar & (skipping == 0))
                    with m.If(scalar | (skipping != 0) | sent):
                        m.d.comb += take.eq(1)
                        m.d.sync += [
                            header.eq(word), left.eq(counts[code0]), raw.eq(raws[code0]),
                            index.eq(0),
                        ]  # fmt: skip
                        with m.If(scalar & (counts[code0] == 0)):
                            m.next = "execute"
                        with m.Elif(counts[code0] != 0):
                            m.next = "operands"
                        with m.Elif((code0 == _code("sys.halt")) & (skipping == 0)):
                            m.d.sync += self.running.eq(0)
                            m.next = "idle"
            with m.State("operands"):
                scalar = Signal()
                m.d.comb += [
                    scalar.eq(Cat(code == c for c in scalars).any()),
                    unit.eq(header.opcode),
                    send.eq(have & ~scalar & (skipping == 0)),
                ]
                with m.If(have & (scalar | (skipping != 0) | sent)):
                    m.d.comb += take.eq(1)
                    m.d.sync += [
                        left.eq(left - 1), raw.eq(raw >> 1), index.eq(1),
                        operands[index].eq(resolved),
                    ]  # fmt: skip
                    with m.If(left == 1):
                        m.next = "header"
                        with m.If(scalar):
                            m.next = "execute"
            with m.State("execute"):
                self._execute(m, code, header, operands, write, param, skipping, depth, bodies,
                              remaining, pc, jump, target)  # fmt: skip
            with m.State("param"):
                m.d.comb += [
                    write.en.eq(header.flags[:5] != 0), write.addr.eq(header.flags[:5]),
                    write.data.eq(param.data),
                ]  # fmt: skip
                m.next = "header"
        return m

    def _fetcher(self, m: Module, fetch: Any, pc: Any, word: Any, have: Any, take: Any, jump: Any,
                 target: Any) -> None:  # fmt: skip
        """Keeps `word` filled: the memory is read one word ahead of `pc`.

        `pc` is the address of `word`; `take` consumes it, `jump` restarts at `target`.
        """
        following = Signal.like(pc)
        m.d.comb += [
            following.eq(Mux(jump, target, Mux(have & take, pc + 1, pc))),
            fetch.addr.eq(following),
            fetch.en.eq(1),
            word.eq(fetch.data),
        ]
        m.d.sync += [pc.eq(following), have.eq(1)]

    def _execute(self, m: Module, code: Any, header: Any, operands: Any, write: Any, param: Any,
                 skipping: Any, depth: Any, bodies: Any, remaining: Any, pc: Any, jump: Any,
                 target: Any) -> None:  # fmt: skip
        """One scalar instruction; while a loop is skipped only its nesting counts."""
        a, b = operands[0].as_signed(), operands[1].as_signed()
        top = Signal.like(depth)
        m.d.comb += top.eq(depth - 1)
        m.next = "header"
        with m.If(skipping != 0):
            with m.If(code == _code("sys.loop")):
                m.d.sync += skipping.eq(skipping + 1)
            with m.Elif(code == _code("sys.end")):
                m.d.sync += skipping.eq(skipping - 1)
        with m.Else(), m.Switch(code):
            for name, result in (
                ("sys.add", a + b), ("sys.sub", a - b), ("sys.min", Mux(a < b, a, b)),
                ("sys.max", Mux(a > b, a, b)), ("sys.shr", a >> operands[1][:5]),
                ("sys.mul", a * b),
            ):  # fmt: skip
                with m.Case(_code(name)):
                    m.d.comb += [
                        write.en.eq(header.flags[:5] != 0), write.addr.eq(header.flags[:5]),
                        write.data.eq(result),
                    ]  # fmt: skip
            with m.Case(_code("sys.param")):
                m.d.comb += [param.addr.eq(operands[0]), param.en.eq(1)]
                m.next = "param"
            with m.Case(_code("sys.loop")):
                with m.If(a <= 0):
                    m.d.sync += skipping.eq(1)
                with m.Elif(depth == LOOP_DEPTH):
                    m.d.sync += [self.error.eq(1), self.running.eq(0)]
                    m.next = "idle"
                with m.Else():
                    m.d.sync += [
                        bodies[depth].eq(pc), remaining[depth].eq(operands[0]),
                        depth.eq(depth + 1),
                    ]  # fmt: skip
            with m.Case(_code("sys.end")):
                with m.If(depth == 0):
                    m.d.sync += [self.error.eq(1), self.running.eq(0)]
                    m.next = "idle"
                with m.Elif(remaining[top] == 1):
                    m.d.sync += depth.eq(top)
                with m.Else():
                    m.d.comb += [jump.eq(1), target.eq(bodies[top])]
                    m.d.sync += remaining[top].eq(remaining[top] - 1)
