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
from flightllm.hw.memory.buffers import read_port
from flightllm.hw.sharing import shared
from flightllm.spec.isa import (
    FLAG_BITS,
    IMMEDIATE_BITS,
    INSTRUCTIONS,
    LOOP_DEPTH,
    REGISTER_BITS,
    REGISTERS,
    UNITS,
    Instruction,
    Register,
    by_name,
)
from flightllm.spec.registers import ErrorCode

__all__ = ["Dispatcher", "memory_port"]

HOST_REGISTERS = (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
MUL_CYCLES = 3


def _code(name: str) -> int:
    """Low byte of an instruction's header: opcode and function."""
    return _low(by_name(name))


def _low(entry: Instruction) -> int:
    return entry.unit | entry.function << 4


def _reserved(entry: Instruction) -> int:
    """Bits of the header that must be 0: the unit's own tokens, and flags that there are not."""
    own = 1 << entry.unit
    used = REGISTER_BITS if entry.writes_register else len(entry.flags)
    flags = (1 << FLAG_BITS) - (1 << used)
    return own << 8 | own << 14 | flags << 20


def memory_port(depth: int) -> Any:
    """The host's side of a memory of `depth` words, used while no program runs.

    `value` is the word at `address` a cycle after that was shown.
    """
    return wiring.Signature({
        "address": Out(range(depth)), "data": Out(32), "enable": Out(1), "value": In(32),
    })  # fmt: skip


@shared()
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
    first : Out, the word sent is the first of its instruction. address : Out, that word's address.
    program, params : In, the host's ports.
    tables : In, another reader of the parameters.
    running : Out, until sys.halt has been handed to SYS.
    moving : Out, it runs and does not wait for a queue.
    error : Out, sticky until the next start: the program cannot go on; `code` says why, `address`
        where.
    """

    def __init__(self, program_words: int, param_words: int) -> None:
        self._depths = program_words, param_words
        queues = {f"queue{unit}": Out(stream.Signature(32)) for unit in UNITS}
        super().__init__(
            {
                "start": In(1),
                "entry": In(32),
                **{name.name.lower(): In(32) for name in HOST_REGISTERS},
                **queues,
                "first": Out(1),
                "address": Out(range(program_words)),
                "program": In(memory_port(program_words)),
                "params": In(memory_port(param_words)),
                "tables": In(read_port(1)),
                "running": Out(1),
                "moving": Out(1),
                "error": Out(1),
                "code": Out(ErrorCode),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        fetch = self._memory(m, "program_memory", self._depths[0], self.program)
        self.param = self._memory(m, "param_memory", self._depths[1], self.params)
        self._tables(m)
        source, value, self.write = self._registers(m)
        self._fetcher(m, fetch)
        self.header, self.code_now = Signal(HEADER), Signal(8)
        self.left, self.raw, self.index = Signal(5), Signal(32), Signal(1)
        self.operands = Signal(data.ArrayLayout(32, 2))
        self.resolved = Signal(32)
        self.skipping = Signal(range(LOOP_DEPTH + 2))
        self.depth = Signal(range(LOOP_DEPTH + 1))
        self.bodies = Array(Signal.like(self.pc, name=f"body{i}") for i in range(LOOP_DEPTH))
        self.remaining = Array(Signal(32, name=f"remaining{i}") for i in range(LOOP_DEPTH))
        immediate = self.word[:IMMEDIATE_BITS].as_signed()
        m.d.comb += [
            source.eq(self.word[IMMEDIATE_BITS:]),
            self.resolved.eq(Mux(
                self.raw[0], self.word, immediate + Mux(source == 0, Const(0, 32), value)
            )),
            self.code_now.eq(Cat(self.header.opcode, self.header.function)),
        ]  # fmt: skip
        self._queues(m)
        self._states(m)
        return m

    # ------------------------------------------------------------------------ memories

    def _memory(self, m: Module, name: str, depth: int, port: Any) -> Any:
        """A 32-bit memory with the host's port; its read port (one cycle)."""
        m.submodules[name] = memory = Memory(shape=32, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.addr.eq(port.address), write.data.eq(port.data), write.en.eq(port.enable),
            port.value.eq(read.data),
        ]  # fmt: skip
        return read

    def _tables(self, m: Module) -> None:
        """The parameter memory's address: the host's, unless a table or sys.param asks."""
        port, param = self.tables, self.param
        m.d.comb += [
            port.ready.eq(1), param.en.eq(1),
            param.addr.eq(Mux(port.valid, port.addr, self.params.address)),
        ]  # fmt: skip
        m.d.sync += port.data[0].eq(param.data)

    def _registers(self, m: Module) -> tuple[Any, Any, Any]:
        """The register file: asynchronous read address and data, write port."""
        m.submodules.registers = memory = Memory(shape=32, depth=REGISTERS, init=[])
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        return read.addr, read.data, write

    def _fetcher(self, m: Module, fetch: Any) -> None:
        """Keeps `word` filled: the memory is read one word ahead of `pc`.

        `pc` is the address of `word`; `take` consumes it, `jump` restarts at `target`. `over` says
        that the program ran over the memory's end.
        """
        last = self._depths[0] - 1
        self.pc, self.word, self.over = Signal(range(last + 1)), Signal(32), Signal()
        self.take, self.jump, self.target = Signal(), Signal(), Signal.like(self.pc)
        following = Signal.like(self.pc)
        m.d.comb += [
            following.eq(Mux(self.jump, self.target, self.pc + self.take)),
            fetch.addr.eq(Mux(self.running, following, self.program.address)),
            fetch.en.eq(1),
            self.word.eq(fetch.data),
        ]
        m.d.sync += self.pc.eq(following)
        with m.If(self.jump):
            m.d.sync += self.over.eq(0)
        with m.Elif(self.take & (self.pc == last)):
            m.d.sync += self.over.eq(1)

    # ------------------------------------------------------------------------ queues

    def _queues(self, m: Module) -> None:
        """A word for `unit`: offered while `send`, gone when `sent`."""
        ready = Array(getattr(self, f"queue{unit}").ready for unit in UNITS)
        self.send, self.sent, self.unit = Signal(), Signal(), Signal(4)
        for number in UNITS:
            queue = getattr(self, f"queue{number}")
            m.d.comb += [
                queue.valid.eq(self.send & (self.unit == number)),
                queue.payload.eq(Mux(self.first, self.word, self.resolved)),
            ]
        m.d.comb += [
            self.sent.eq(self.send & ready[self.unit]),
            self.moving.eq(self.running & ~(self.send & ~self.sent)),
        ]

    # ------------------------------------------------------------------------ the walk

    def _fail(self, m: Module, code: ErrorCode) -> None:
        m.d.sync += [self.error.eq(1), self.code.eq(code), self.running.eq(0)]
        m.next = "idle"

    def _states(self, m: Module) -> None:
        clearing, at = Signal(range(REGISTERS)), Signal.like(self.address)
        m.d.comb += self.address.eq(Mux(self.first, self.pc, at))
        m.d.sync += at.eq(self.address)
        with m.FSM():
            with m.State("idle"), m.If(self.start):
                m.d.sync += [
                    clearing.eq(0), self.depth.eq(0), self.skipping.eq(0), self.error.eq(0),
                    at.eq(self.entry), self.running.eq(1),
                ]  # fmt: skip
                m.next = "clear"
                with m.If(self.entry >= self._depths[0]):
                    self._fail(m, ErrorCode.PROGRAM)
            with m.State("clear"):
                m.d.comb += [
                    self.jump.eq(1), self.target.eq(self.entry),
                    self.write.en.eq(1), self.write.addr.eq(clearing), self.write.data.eq(0),
                ]  # fmt: skip
                with m.Switch(clearing):
                    for name in HOST_REGISTERS:
                        with m.Case(name):
                            m.d.comb += self.write.data.eq(getattr(self, name.name.lower()))
                m.d.sync += clearing.eq(clearing + 1)
                with m.If(clearing == REGISTERS - 1):
                    m.next = "header"
            with m.State("header"):
                m.d.comb += self.first.eq(1)
                self._header(m)
            with m.State("operands"):
                self._operands(m)
            with m.State("execute"):
                m.next = "header"
                self._execute(m)
            self._slow_results(m)

    def _header(self, m: Module) -> None:
        counts, raws = Array([0] * 256), Array([0] * 256)
        reserved = Array([0xFFFFFFFF] * 256)
        for entry in INSTRUCTIONS:
            code = _low(entry)
            counts[code], reserved[code] = entry.words - 1, _reserved(entry)
            raws[code] = sum(op.raw << i for i, op in enumerate(entry.operands))
        code, scalar, live = self.word[:8], Signal(), Signal()
        m.d.comb += [
            scalar.eq(Cat(code == _low(e) for e in INSTRUCTIONS if e.scalar).any()),
            self.unit.eq(data.View(HEADER, self.word).opcode),
            live.eq(~scalar & (self.skipping == 0)),
        ]
        with m.If(self.over):
            self._fail(m, ErrorCode.PROGRAM)
        with m.Elif((self.word & reserved[code]).any()):
            self._fail(m, ErrorCode.INSTRUCTION)
        with m.Else():
            m.d.comb += self.send.eq(live)
            with m.If(~live | self.sent):
                m.d.comb += self.take.eq(1)
                m.d.sync += [
                    self.header.eq(self.word), self.left.eq(counts[code]),
                    self.raw.eq(raws[code]), self.index.eq(0),
                ]  # fmt: skip
                with m.If(counts[code] != 0):
                    m.next = "operands"
                with m.Elif(scalar):
                    m.next = "execute"
                with m.Elif((code == _code("sys.halt")) & live):
                    m.d.sync += self.running.eq(0)
                    m.next = "idle"

    def _operands(self, m: Module) -> None:
        scalar, live = Signal(), Signal()
        m.d.comb += [
            scalar.eq(Cat(self.code_now == _low(e) for e in INSTRUCTIONS if e.scalar).any()),
            live.eq(~scalar & (self.skipping == 0)),
            self.unit.eq(self.header.opcode),
            self.send.eq(live & ~self.over),
        ]
        with m.If(self.over):
            self._fail(m, ErrorCode.PROGRAM)
        with m.Elif(~live | self.sent):
            m.d.comb += self.take.eq(1)
            m.d.sync += [
                self.left.eq(self.left - 1), self.raw.eq(self.raw >> 1), self.index.eq(1),
                self.operands[self.index].eq(self.resolved),
            ]  # fmt: skip
            with m.If(self.left == 1):
                m.next = "header"
                with m.If(scalar):
                    m.next = "execute"

    # ------------------------------------------------------------------------ scalars

    def _set(self, m: Module, value: Any) -> None:
        register = self.header.flags[:REGISTER_BITS]
        m.d.comb += [
            self.write.en.eq(register != 0), self.write.addr.eq(register),
            self.write.data.eq(value),
        ]  # fmt: skip

    def _execute(self, m: Module) -> None:
        """One scalar instruction; while a loop is skipped only its nesting counts."""
        a, b = self.operands[0].as_signed(), self.operands[1].as_signed()
        skipping = self.skipping
        with m.If(skipping != 0):
            with m.If(self.code_now == _code("sys.loop")):
                m.d.sync += skipping.eq(skipping + 1)
            with m.Elif(self.code_now == _code("sys.end")):
                m.d.sync += skipping.eq(skipping - 1)
        with m.Else(), m.Switch(self.code_now):
            for name, result in (
                ("sys.add", a + b), ("sys.sub", a - b), ("sys.min", Mux(a < b, a, b)),
                ("sys.max", Mux(a > b, a, b)), ("sys.shr", a >> self.operands[1][:5]),
            ):  # fmt: skip
                with m.Case(_code(name)):
                    self._set(m, result)
            with m.Case(_code("sys.mul")):
                m.next = "multiply"
            with m.Case(_code("sys.param")):
                m.d.comb += [self.param.addr.eq(self.operands[0]), self.tables.ready.eq(0)]
                m.next = "param"
                with m.If(self.operands[0] >= self._depths[1]):
                    self._fail(m, ErrorCode.PROGRAM)
            with m.Case(_code("sys.loop")):
                self._loop(m, a)
            with m.Case(_code("sys.end")):
                self._end(m)

    def _loop(self, m: Module, count: Any) -> None:
        with m.If(count <= 0):
            m.d.sync += self.skipping.eq(1)
        with m.Elif(self.depth == LOOP_DEPTH):
            self._fail(m, ErrorCode.LOOP)
        with m.Else():
            m.d.sync += [
                self.bodies[self.depth].eq(self.pc),
                self.remaining[self.depth].eq(self.operands[0]),
                self.depth.eq(self.depth + 1),
            ]

    def _end(self, m: Module) -> None:
        top = Signal.like(self.depth)
        m.d.comb += top.eq(self.depth - 1)
        with m.If(self.depth == 0):
            self._fail(m, ErrorCode.LOOP)
        with m.Elif(self.remaining[top] == 1):
            m.d.sync += self.depth.eq(top)
        with m.Else():
            m.d.comb += [self.jump.eq(1), self.target.eq(self.bodies[top])]
            m.d.sync += self.remaining[top].eq(self.remaining[top] - 1)

    def _slow_results(self, m: Module) -> None:
        """Parameters and products; the product's registers become those of DSPs."""
        with m.State("param"):
            self._set(m, self.param.data)
            m.next = "header"
        product: Any = self.operands[0] * self.operands[1]
        for k in range(MUL_CYCLES):
            stage = Signal(32, name=f"product_{k}", reset_less=True)
            m.d.sync += stage.eq(product)
            product = stage
        step = Signal(MUL_CYCLES)
        m.d.sync += step.eq(0)
        with m.State("multiply"):
            m.d.sync += step.eq(Cat(Const(1, 1), step))
            with m.If(step[-1]):
                self._set(m, product)
                m.d.sync += step.eq(0)
                m.next = "header"
