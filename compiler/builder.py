"""What emitting a program needs at every step: registers, addresses, steps, loops, streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from flightllm.compiler.allocate import Layout, Region
from flightllm.compiler.graph import Graph
from flightllm.compiler.ir import Access, Loop, Step
from flightllm.compiler.parameters import Parameters
from flightllm.compiler.shape import ModelShape
from flightllm.compiler.tile import CoreTile
from flightllm.spec.config import HwConfig
from flightllm.spec.encoding import Op, Value
from flightllm.spec.formats import ALIGN, kgroups_for
from flightllm.spec.image import Segment
from flightllm.spec.isa import Register, Unit

__all__ = ["LOGITS", "NTOK", "POS", "R", "STEPS", "Builder", "halves", "padded", "reg"]

POS, NTOK, STEPS, LOGITS = (
    Value(0, r) for r in (Register.POS, Register.NTOK, Register.STEPS, Register.LOGITS)
)
_NAMES = (
    "addr", "fmt", "table", "param", "vec", "kbase", "vbase", "key", "value", "start", "qsrc",
    "qscale", "out", "scores", "vs", "prob", "factor", "rows", "base", "first", "blocks", "n1",
    "p0", "tmp", "step", "row", "rest",
)  # fmt: skip
_SHARED = {
    "kmask": "scores", "vmask": "vs", "kept": "prob", "two": "factor", "shift": "addr",
    "width": "fmt", "end": "table", "block": "row",
    "later": "rest",
}  # fmt: skip
"""Of block-sparse prefill: registers that only decode's attention, or only projections, use; and
the register that only decode, and only prefill, needs."""
R = {name: Register.LOGITS + 1 + i for i, name in enumerate(_NAMES)}
R |= {name: R[other] for name, other in _SHARED.items()}


def reg(name: str, more: int = 0) -> Value:
    """The program's register `name`, plus an immediate."""
    return Value(more, R[name])


def padded(count: int, unit: int) -> int:
    """`count` rounded up to a multiple of `unit`."""
    return -(-count // unit) * unit


PER_TOKEN = frozenset({
    "amax", "sums", "scale_x", "scale_a", "scale_m", "rope", "x", "q", "k", "v", "qscale", "kscale",
    "vscale", "att", "gate", "up", "xq", "aq", "qq", "kq", "vq", "mq",
})  # fmt: skip
"""Regions that hold something of every token of a tile, token after token."""
LEAST_HALF = 16
"""Tokens of half a tile from which on its halves go through the layers side by side."""


def halves(config: HwConfig) -> bool:
    """Whether a full tile is worked on as two halves, so that the special functions of one run
    beside the matrices of the other.

    Matrices are then streamed twice: there must be more to compute than to read.
    """
    half = config.prefill_tile // 2
    return (
        config.prefill_tile % 2 == 0 and half >= LEAST_HALF
        and half >= config.macs_per_channel // config.beat_bytes
    )  # fmt: skip


class Builder:
    """Appends steps of one program of one core; `out` is the block being filled.

    `half` is the half of a tile that steps are for (0 or 1), None for all of it: regions, tokens
    and their first position are then that half's.
    """

    def __init__(self, graph: Graph, shape: ModelShape, parts: list[CoreTile], core: int,
                 layout: Layout, params: Parameters, config: HwConfig,
                 mode: str) -> None:  # fmt: skip
        self.graph, self.shape, self.parts, self.part = graph, shape, parts, parts[core]
        self.core, self.layout, self.params, self.config = core, layout, params, config
        self.decode = mode == "decode"
        self.half: int | None = None
        self.asked: set[str] = set()  # matrices whose LD.stream stands before its place
        self.out: list[Step | Loop] = []

    def step(self, name: str, *flags: str, touch: tuple[Access, ...] = (),
             **operands: Value | int | float) -> None:  # fmt: skip
        self.out.append(Step(Op.make(name, *flags, rd=0, **operands), touch))

    def link(self, signals: Unit | None = None, awaits: Unit | None = None,
             awaited: tuple[Access, ...] = ()) -> None:  # fmt: skip
        """Link the last step with one of a loop behind it, or before it; see `Step`."""
        step = self.out[-1]
        assert isinstance(step, Step)
        self.out[-1] = replace(step, signals=signals, awaits=awaits, awaited=awaited)

    def scalar(self, op: str, rd: str | Register, a: Value | int, b: Value | int = 0) -> None:
        number = R[rd] if isinstance(rd, str) else rd
        self.out.append(Step(Op.make(f"sys.{op}", rd=number, a=a, b=b)))

    def loop(self, name: str, count: Value | int, fill: Callable[[], None]) -> None:
        """A loop whose body `fill` appends."""
        outer, self.out = self.out, []
        fill()
        body, self.out = tuple(self.out), outer
        self.out.append(Loop(name, count if isinstance(count, Value) else Value(count), body))

    def region(self, name: str) -> Region:
        whole = self.layout.regions[name]
        if self.half is None or name not in PER_TOKEN:
            return whole
        size = whole.size // 2
        return Region(whole.space, whole.start + self.half * size, size)

    def at(self, name: str, more: int = 0) -> int:
        return self.region(name).start + more

    def reads(self, *names: str, apart: str = "") -> tuple[Access, ...]:
        loops = (apart,) if apart else ()
        return tuple(Access.of(self.region(n), False, *loops) for n in names)

    def writes(self, *names: str, apart: str = "") -> tuple[Access, ...]:
        loops = (apart,) if apart else ()
        return tuple(Access.of(self.region(n), True, *loops) for n in names)

    def segment(self, name: str) -> Segment:
        return self.layout.memory.segments[name]

    def units(self, name: str, more: int = 0) -> int:
        """Address of a segment in 64-byte units."""
        return (self.segment(name).base + more) // ALIGN

    def memory(self, name: str, write: bool, *apart: str) -> Access:
        return Access(f"memory.{name}", 0, 1, write, frozenset(apart))

    @property
    def several(self) -> bool:
        return self.config.cores > 1

    @property
    def tokens(self) -> Value:
        if self.half is not None:
            return reg("rest") if self.half else Value(self.config.prefill_tile // 2)
        return Value(1) if self.decode else NTOK

    @property
    def position(self) -> Value:
        """Of the first token."""
        return Value(self.config.prefill_tile // 2, Register.POS) if self.half else POS

    def load_biases(self, names: tuple[str, ...], ahead: int = 0) -> None:
        for name in names:
            if name in self.shape.biases:
                self.load_vector(f"bias_{name}", f"bias_{name}", ahead)

    def load_vector(self, region: str, vector: str, ahead: int = 0) -> None:
        offset = (self.layout.memory.vectors[vector] + ahead) // ALIGN
        self.step("ld.vec", addr=reg("vec", offset), dst=self.at(region),
                  n=self.region(region).size, count=1, mstride=0, dstride=0,
                  touch=self.writes(region))  # fmt: skip

    def matrix(self, name: str, record: Value | None = None) -> dict[str, Any]:
        """Operands of a layer's matrix; without `addr` when it is asked for already. `record` is
        the place of the layer's parameters, else the current layer's."""
        shape = self.shape
        group = shape.layers[0][name].fmt.group
        out: dict[str, Any] = {
            "rows": self.part.rows(shape, name).size, "first": 0, "start": 0,
            "kgroups": kgroups_for(shape.columns(name), group),
        }  # fmt: skip
        if name in self.asked:
            self.asked.remove(name)
            return out | {"fmt": reg("fmt"), "table": self.table}
        record = reg("param") if record is None else record
        index = record + shape.matrices.index(name) * self.params.width
        address, fmt, table = self.load_record(index)
        return out | {"addr": address, "fmt": fmt, "table": table}

    def ask_early(self, name: str) -> None:
        """LD.stream of a layer's matrix, ahead of its instruction; no other record is loaded
        between them."""
        self.stream((), **self.matrix(name))
        self.asked.add(name)

    @cached_property
    def first(self) -> str:
        """The matrix that a layer begins with; empty where the core has no rows of it."""
        name = next(n.weight for n in self.graph.body if n.weight in self.shape.matrices)
        return name if self.part.rows(self.shape, name).size else ""

    def ask_for_next(self, loop: str) -> None:
        """In decoding, where a token is to come: LD.stream of its first layer's first matrix."""
        if self.decode and self.first:
            self.scalar("sub", "tmp", STEPS, reg("step"))
            self.scalar("min", "tmp", reg("tmp"), 1)
            self.loop(loop, reg("tmp"), lambda: self.stream(
                (), **self.matrix(self.first, Value(self.params.layers))
            ))  # fmt: skip

    def ask_first(self) -> None:
        """In decoding, where a layer begins: LD.stream of its first matrix, which for the first
        layer stands before the token."""
        if self.decode and self.first:
            operands = self.matrix(self.first)
            self.loop("later", reg("later"), partial(self.stream, (), **operands))
            self.scalar("add", "later", 1)
            self.asked.add(self.first)

    @property
    def table(self) -> Value | int:
        """A matrix's code table, from its record."""
        return reg("table") if self.params.width == 3 else 0

    def load_record(self, index: Value) -> tuple[Value, Value, Value | int]:
        """Address, format and table of a matrix from its parameter record."""
        names = ("addr", "fmt", "table")[: self.params.width]
        for i, name in enumerate(names):
            self.out.append(Step(Op.make("sys.param", rd=R[name], index=index + i)))
        return reg("addr"), reg("fmt"), self.table

    def stream(self, touch: tuple[Access, ...], **operands: Value | int) -> None:
        """LD.stream with its part of a matrix instruction's operands."""
        names = ("addr", "rows", "kgroups", "fmt", "first", "start")
        self.step("ld.stream", touch=touch, **{name: operands[name] for name in names})

    def linear(self, touch: tuple[Access, ...], n1: Value | int, n2: int,
               strides: dict[str, int], add: Value | int | None = None,
               **operands: Value | int) -> None:  # fmt: skip
        """MM or MV with LD.stream before it, unless that stands there already (no `addr`); in MV
        mode the token dimension does not exist."""
        stream = tuple(a for a in touch if a.space.startswith("memory"))
        if "addr" in operands:
            self.stream(stream, **operands)
            del operands["addr"]
        touch = tuple(a for a in touch if a not in stream)
        flags = () if add is None else ("add",)
        values: dict[str, Value | int] = {**operands, **strides, "add": add or 0, "n2": n2}
        if self.decode:
            values = {k: v for k, v in values.items() if not k.endswith("1")}
            self.step("mv.linear", *flags, touch=touch, **values)
        else:
            self.step("mm.linear", *flags, touch=touch, n1=n1, **values)
