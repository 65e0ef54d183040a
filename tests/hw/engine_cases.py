"""Instructions for the matrix engine, what they must leave in F, and a program that runs both.

What they must leave in F the functional simulator says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.back import rtlil
from amaranth.hdl import Module, Value
from amaranth.lib import wiring

from flightllm.hw.engine import EngineSize, MatrixEngine
from flightllm.hw.sharing import Library
from flightllm.sim.functional.core import Buffer
from flightllm.sim.functional.linear import mm_linear, mv_linear
from flightllm.sim.functional.matrices import MatrixCache, Stream
from flightllm.sim.functional.memory import Region
from flightllm.sim.rtl.verilate import verilate
from flightllm.spec.encoding import Op, encode
from flightllm.spec.formats import (
    BLOCK,
    MatrixFormat,
    Second,
    chunk_bytes,
    format_for,
    kgroups_for,
    pack_matrix,
    section_bytes,
    stream_bytes,
)
from flightllm.spec.image import Segment

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "spec")]
from floating_cases import CACHE  # noqa: E402
from test_formats import random_tensor  # noqa: E402

__all__ = [
    "Case", "Machine", "cyclic", "engine", "plain", "random_case", "random_machine", "turns",
    "whole",
]  # fmt: skip

NOWHERE = Region(Segment("nothing", 0, 0, 0, False), np.zeros((1, 0), np.uint8))
F_WORDS, A_BYTES, PARAM_WORDS = 1 << 18, 1 << 17, 256


@dataclass
class Case:
    """One matrix and how it is used; the shapes are the instruction's."""

    fmt: MatrixFormat
    streams: list[Any]
    rows: int
    kgroups: int
    n1: int = 1
    n2: int = 1
    first: int = 0
    start: int = 0
    table: Sequence[int] | None = None
    add: bool = False
    unit: str = "mm"


def plain(seed: int, rows: int, columns: int, bits: int, group: int, channels: int,
          kind: str = "plain", kept: int = 16, private: bool = False,
          **use: Any) -> Case:  # fmt: skip
    """Random weights."""
    tensor = random_tensor(seed, rows, columns, bits, group, kind, kept, private)
    return Case(
        format_for(tensor), pack_matrix(tensor, channels), rows, kgroups_for(columns, group),
        table=tensor.table, **use,
    )  # fmt: skip


def cyclic(seed: int, rows: int, group: int, bits: int, channels: int, first: int = 0,
           start: int = 0, **use: Any) -> Case:  # fmt: skip
    """Random keys, with V scales to emit."""
    fmt = MatrixFormat(bits, group, second=Second.EMIT, cyclic=True, bytewise=bits == 4)
    rng = np.random.default_rng(seed)
    sizes = stream_bytes(fmt, rows, 1, channels, first, start)
    streams = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    for part in streams:
        chunks = part.reshape(-1, chunk_bytes(fmt))
        count = sum(section_bytes(fmt)[:2]) // 2
        scales = rng.normal(0, 1, (len(chunks), count)).astype(np.float16)
        chunks[:, : 2 * count] = scales.view(np.uint8)
    return Case(fmt, streams, rows, 1, first=first, start=start, **use)


def whole(seed: int, rows: int, blocks: int, bits: int, channels: int, **use: Any) -> Case:
    """Random values."""
    fmt = MatrixFormat(bits, BLOCK, scale=False, whole=True)
    rng = np.random.default_rng(seed)
    sizes = stream_bytes(fmt, rows, blocks, channels)
    return Case(fmt, [rng.integers(0, 256, n, dtype=np.uint8) for n in sizes], rows, blocks, **use)


def _heads(rng: np.random.Generator, channels: int, vectors: int) -> tuple[int, int, str]:
    """Tokens, heads and unit; a few vectors more often than many."""
    if rng.integers(3) == 0:
        return 1, 1, "mv"
    n2 = int(rng.integers(1, min(8, vectors) + 1)) if rng.integers(2) else 1
    if rng.integers(2):
        return 1, n2, "mv"
    most = vectors // n2
    return int(rng.integers(1, (most if rng.integers(4) == 0 else min(6, most)) + 1)), n2, "mm"


def random_case(rng: np.random.Generator, channels: int, size: EngineSize) -> Case:
    """Any format the compiler emits, any shape that the engine has."""
    n1, n2, unit = _heads(rng, channels, size.vectors)
    use: dict[str, Any] = {"n1": n1, "n2": n2, "unit": unit, "add": bool(rng.integers(2))}
    seed, order = int(rng.integers(1 << 30)), rng.integers(4)
    if order == 0:
        return cyclic(
            seed, int(rng.integers(1, 130)), int(rng.choice([16, 32, 48, 64, 80, 96, 128, 256])),
            int(rng.choice([4, 8])), channels, int(rng.integers(4)), int(rng.integers(4)), **use,
        )  # fmt: skip
    if order == 1:
        pairs = size.accumulators // -(-n1 * n2 // size.cells) * channels
        rows = int(rng.integers(1, min(128, 2 * pairs) + 1))
        return whole(seed, rows, int(rng.integers(1, 6)), int(rng.choice([4, 8])), channels, **use)
    kept = int(rng.choice([16, 16, 2, 4, 8]))
    group = int(rng.choice([32, 64, 128]))
    kind = str(rng.choice(["plain", "minima", "zeros", "table"]))
    top = {"plain": 8, "minima": 8, "zeros": 7, "table": 4}[kind]
    return plain(
        seed, int(rng.integers(1, 1 + int(rng.choice([8, 40, 100])))), int(rng.integers(1, 700)),
        int(rng.integers(2, top + 1)), group, channels, kind, kept, bool(rng.integers(2)), **use,
    )  # fmt: skip


def random_machine(seed: int, size: EngineSize, count: int = 4) -> Machine:
    """A few random instructions, and some that do nothing."""
    machine = Machine(size.channels, seed)
    for _ in range(count):
        machine.add(random_case(machine.rng, size.channels, size))
        if machine.rng.integers(4) == 0:
            machine.nop(str(machine.rng.choice(["mm", "mv"])))
    return machine


def turns(channels: int) -> Machine:
    """MM and MV in turn, several of one behind the other, each with a matrix of its own shape."""
    machine = Machine(channels, 9)
    order = ["mm"] * 3 + ["mv"] * 3 + ["mm", "mv", "mm", "mm", "mv"]
    for k, unit in enumerate(order):
        machine.add(plain(k, 20 + 3 * k, 64 + 32 * (k % 3), 2 + k % 7, 32, channels, unit=unit))
    return machine


class _Core:
    """What `linear` needs of a functional core."""

    mv_vectors = 8

    def __init__(self, machine: Machine, stream: Stream) -> None:
        self.f = Buffer("F", machine.want)
        self.a = Buffer("A", machine.a)
        self.params, self.matrices = machine.params, MatrixCache(machine.channels, 0)
        self._stream = stream

    def pop(self) -> Stream:
        return self._stream

    def note(self, name: str, values: Any) -> None:
        """Nobody traces."""


def _joined(case: Case, channels: int) -> Any:
    """Chunks of a cyclic matrix in order."""
    parts = [part.reshape(-1, chunk_bytes(case.fmt)) for part in case.streams]
    out, taken = [], [0] * channels
    for block in range(case.first, case.first + -(-case.rows // BLOCK)):
        c = (block + case.start) % channels
        out.append(parts[c][taken[c]])
        taken[c] += 1
    return np.concatenate(out)


class Machine:
    """F, A and parameters, a list of instructions, and what they make of F.

    Parameters
    ----------
    channels : of the engine. seed : of activations, scales and addends.
    """

    def __init__(self, channels: int, seed: int) -> None:
        self.channels, self.rng = channels, np.random.default_rng(seed)
        self.f = self.rng.normal(0, 1, F_WORDS).astype(np.float32)
        self.a = self.rng.integers(-127, 128, A_BYTES).astype(np.int8)
        self.params = self.rng.integers(0, 1 << 32, PARAM_WORDS, dtype=np.uint32)
        self.want = self.f.copy()
        self.ops: list[Op] = []
        self.beats: list[list[Any]] = [[] for _ in range(channels)]
        self.free = F_WORDS // 4  # what lies below is read, from here on is written

    def _place(self, count: int) -> int:
        at = self.free + int(self.rng.integers(0, 4))
        self.free = at + count
        assert self.free <= F_WORDS
        return at

    def add(self, case: Case) -> None:
        """Append an instruction with random addresses and strides."""
        rng, fmt, n1, n2, rows = self.rng, case.fmt, case.n1, case.n2, case.rows
        columns = case.kgroups * fmt.group
        src2 = columns + int(rng.integers(0, 9))
        src1 = n2 * src2 + int(rng.integers(0, 9))
        src = int(rng.integers(0, A_BYTES - n1 * src1 - 512))
        at = {"src": src, "src1": src1, "src2": src2}
        at |= {"scale": int(rng.integers(0, 999)), "scale1": n2 + 1, "scale2": 1}
        dst2 = rows + int(rng.integers(0, 3))
        at |= {"dst2": dst2, "dst1": n2 * dst2 + 1}
        at["dst"] = self._place(n1 * at["dst1"])
        at |= {"add": int(rng.integers(1000, 2000)), "add1": rows + int(rng.integers(0, 5))}
        at["emit"] = self._place(rows) if fmt.second == Second.EMIT else 0
        at["table"] = 5 * len(self.ops) + int(rng.integers(0, 2))
        if case.unit == "mv":
            at = {name: v for name, v in at.items() if name[-1] != "1"}
        else:
            at["n1"] = n1
        op = Op.make(
            f"{case.unit}.linear", *(["add"] if case.add else []), **at, n2=n2, rows=rows,
            kgroups=case.kgroups, fmt=fmt.word, first=case.first, start=case.start,
        )  # fmt: skip
        self._expect(case, op)
        self.ops.append(op)
        for queue, part in zip(self.beats, case.streams):
            queue.append(part)

    def nop(self, unit: str) -> None:
        """Append an instruction that does nothing."""
        self.ops.append(Op.make(f"{unit}.nop"))

    def _expect(self, case: Case, op: Op) -> None:
        """Run the instruction in the functional simulator."""
        if case.table is not None:
            levels = np.zeros(16, np.int8)
            levels[: len(case.table)] = case.table
            at = op.operands["table"].imm
            self.params[at : at + 4] = levels.view("<u4")
        data = case.streams
        if case.fmt.cyclic:
            data = [_joined(case, self.channels)]
        stream = Stream(
            0, case.rows, case.kgroups, case.fmt.word, case.first, case.start, 0, NOWHERE, 0, data
        )  # fmt: skip
        core = _Core(self, stream)
        values = [op.operands[operand.name].imm for operand in op.kind.operands]
        handler = mm_linear if case.unit == "mm" else mv_linear
        handler(core, op.flags, *values)

    def run(self, program: Path, idle: int = 0, stall: int = 0, seed: int = 1) -> Any:
        """F after the instructions, and per instruction: cycles, steps, first step, last step."""
        words: list[int] = []
        for op in self.ops:
            head, *_ = encode([op])
            values = [op.operands[operand.name] for operand in op.kind.operands]
            own = [head, *((v if isinstance(v, int) else v.imm) & 0xFFFFFFFF for v in values)]
            words += [int(op.kind.name.startswith("mv")), len(own), *own]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.array(words, "<u4").tofile(folder / "words")
            self.f.tofile(folder / "f")
            self.a.tofile(folder / "a")
            self.params.tofile(folder / "params")
            for c, parts in enumerate(self.beats):
                np.concatenate([np.zeros(0, np.uint8), *parts]).tofile(folder / f"beats{c}")
            command = [str(program), name, str(idle), str(stall), str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            counts = [list(map(int, line.split())) for line in done.stdout.splitlines()]
            return np.fromfile(folder / "f", np.float32), counts

    def check(self, program: Path, idle: int = 0, stall: int = 0, seed: int = 1) -> Any:
        """Run and compare all of F; the counts."""
        got, counts = self.run(program, idle, stall, seed)
        wrong = np.flatnonzero(got.view(np.uint32) != self.want.view(np.uint32))
        assert wrong.size == 0, (
            f"{wrong.size} words of F differ, the first at {wrong[0]}: {got[wrong[0]]!r}, not "
            f"{self.want[wrong[0]]!r}; before {self.f[wrong[0]]!r}"
        )
        return counts


def engine(size: EngineSize, beat_bytes: int = 16, unit: Any = None,
           optimise: str = "-O1") -> Path:  # fmt: skip
    """The program of an engine, built unless it exists."""
    library = Inside()
    top = Alone(unit or MatrixEngine(size, beat_bytes))
    text = rtlil.convert(top, name="engine", platform=library, emit_src=False)
    harness = Path(__file__).with_name("engine_harness.cpp")
    return verilate(
        "\n".join([*library.texts.values(), text]), "engine", harness, CACHE,
        [f"CHANNELS={size.channels}", f"BEAT={beat_bytes}"], optimise,
    )  # fmt: skip


class Inside(Library):
    """Shares modules; memories stay what Amaranth makes of them."""

    external_rams = False


class Alone(wiring.Component):
    """A unit, shared or not, as the top of a design."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        super().__init__(unit.signature)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        outer, inner = (part.signature.flatten(part) for part in (self, self.unit))
        for (_, member, port), (_, _, own) in zip(outer, inner):
            to, value = (port, own) if member.flow == wiring.Out else (own, port)
            m.d.comb += Value.cast(to).eq(value)
        return m
