"""Instructions for the matrix engine, what they must leave in F, and a program that runs both."""

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

from flightllm.hw.engine import EngineSize, MatrixEngine
from flightllm.sim.rtl.verilate import verilate
from flightllm.spec import numerics
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
    unpack_matrix,
)
from flightllm.spec.quant import QuantTensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "spec")]
from floating_cases import CACHE  # noqa: E402
from test_formats import random_tensor  # noqa: E402

__all__ = ["Case", "Machine", "blocked", "cyclic", "engine", "plain", "whole"]

F_WORDS, A_BYTES, PARAM_WORDS = 1 << 16, 1 << 17, 64


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


def blocked(tensor: QuantTensor, channels: int, **use: Any) -> Case:
    """A case of weights."""
    rows, columns = tensor.shape
    return Case(
        format_for(tensor), pack_matrix(tensor, channels), rows,
        kgroups_for(columns, tensor.group), table=tensor.table, **use,
    )  # fmt: skip


def plain(seed: int, rows: int, columns: int, bits: int, group: int, channels: int,
          kind: str = "plain", kept: int = 16, private: bool = False, **use: Any) -> Case:  # fmt: skip  # noqa: E501
    """Random weights."""
    tensor = random_tensor(seed, rows, columns, bits, group, kind, kept, private)
    return blocked(tensor, channels, **use)


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
        at["table"] = int(rng.integers(0, PARAM_WORDS - 4))
        self._expect(case, at, columns)
        if case.unit == "mv":
            assert n1 == 1
            at = {name: v for name, v in at.items() if name[-1] != "1"}
        else:
            at["n1"] = n1
        flags = ["add"] if case.add else []
        self.ops.append(Op.make(
            f"{case.unit}.linear", *flags, **at, n2=n2, rows=rows, kgroups=case.kgroups,
            fmt=fmt.word, first=case.first, start=case.start,
        ))  # fmt: skip
        for queue, part in zip(self.beats, case.streams):
            queue.append(part)

    def nop(self, unit: str) -> None:
        """Append an instruction that does nothing."""
        self.ops.append(Op.make(f"{unit}.nop"))

    def _expect(self, case: Case, at: dict[str, int], columns: int) -> None:
        fmt, n1, n2, rows = case.fmt, case.n1, case.n2, case.rows
        if case.table is not None:
            table = np.zeros(16, np.int8)
            table[: len(case.table)] = case.table
            self.params[at["table"] : at["table"] + 4] = table.view("<u4")
        matrix = unpack_matrix(
            fmt, case.streams, rows, case.kgroups, case.first, case.start, case.table
        )

        def index(name: str, width: int) -> Any:
            one = at[name] + np.arange(n1)[:, None] * at[f"{name}1"]
            return (one + np.arange(n2) * at.get(f"{name}2", 0))[..., None] + np.arange(width)

        x = self.a[index("src", columns)].reshape(n1 * n2, columns)
        scale = self.want[index("scale", 1)].reshape(n1 * n2)
        addend = self.want[index("add", rows)].reshape(n1 * n2, rows) if case.add else None
        if matrix.scales is None:
            acc = numerics.int_to_float(x.astype(np.int32) @ matrix.levels.astype(np.int32).T)
        else:
            minima = matrix.second if fmt.second == Second.MINIMUM else None
            acc = numerics.accumulate(x, matrix.levels, matrix.scales, fmt.group, minima, matrix.kept)  # noqa: E501
        y = numerics.linear(acc, scale, addend)
        self.want[index("dst", rows)] = y.reshape(n1, n2, rows)
        if fmt.second == Second.EMIT and matrix.second is not None:
            self.want[at["emit"] : at["emit"] + rows] = matrix.second[:, 0]

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


def engine(size: EngineSize, beat_bytes: int = 16, unit: Any = None) -> Path:
    """The program of an engine, built unless it exists."""
    made = unit or MatrixEngine(size, beat_bytes)
    text = rtlil.convert(made, name="engine", emit_src=False)
    harness = Path(__file__).with_name("engine_harness.cpp")
    return verilate(
        text, "engine", harness, CACHE, [f"CHANNELS={size.channels}", f"BEAT={beat_bytes}"]
    )
