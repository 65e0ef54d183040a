"""What one instruction comes down to, for every part of the engine."""

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import data

from flightllm.hw.decode.layout import KGROUPS_BITS, PAIRS_BITS, FormatWord
from flightllm.hw.engine.size import EngineSize
from flightllm.hw.frontend import UnitFrontEnd
from flightllm.spec.isa import by_name

__all__ = ["Job", "Mode", "take_operands"]

ROWS_BITS = PAIRS_BITS + 1
COUNT_BITS = 11
_BASES = ("src", "scale", "dst", "add")
_OPERANDS = ("rows", "kgroups", "first", "start", "emit", "table", "n2")


Mode = data.StructLayout({"scaled": 1, "minima": 1, "dense": 1, "twin": 1})
"""What the array wants to know: the format has scales, has minima, is dense; slices are twins."""


class Job(data.StructLayout):
    """One mm.linear or mv.linear.

    Members
    -------
    src, scale, dst, add, emit, table : addresses, as in the instruction.
    src1, src2, scale1, scale2, dst1, dst2, add1 : their strides.
    n1, n2 : vectors. rows, kgroups, first, start : of the matrix. word : its format.
    addend : there is one.
    twin : the array takes twin slices: there is one vector.
    pairs : row pairs of the channels that have most (cyclic: of their chunks).
    extra : channels that have one unit more than the others; 0 when all have the same. A unit is
        a pair of rows, or a chunk of a cyclic matrix.
    offset : the first channel of those (cyclic: the one that holds the first chunk).
    """

    def __init__(self, size: EngineSize) -> None:
        super().__init__(
            dict.fromkeys((*_BASES, "emit", "table"), 32)
            | dict.fromkeys(("src1", "src2", "scale1", "scale2", "dst1", "dst2", "add1"), 32)
            | {
                "n1": COUNT_BITS, "n2": COUNT_BITS, "rows": ROWS_BITS, "kgroups": KGROUPS_BITS,
                "first": ROWS_BITS, "start": ROWS_BITS, "word": FormatWord, "addend": 1, "twin": 1,
                "pairs": PAIRS_BITS, "extra": range(size.channels), "offset": range(size.channels),
            }
        )  # fmt: skip


def take_operands(m: Module, job: Any, front: UnitFrontEnd, name: str) -> None:
    """Register the operands of instruction `name`, which runs in `front`."""
    kind = by_name(name)
    fields = set(job.shape().members)
    have = {operand.name for operand in kind.operands}
    for base in _BASES:
        for field in (base, f"{base}1", f"{base}2"):
            if field in fields:
                value = front.operand(name, field) if field in have else 0
                m.d.sync += job[field].eq(value)
    m.d.sync += [job[field].eq(front.operand(name, field)) for field in _OPERANDS]
    m.d.sync += [
        job.n1.eq(front.operand(name, "n1") if "n1" in have else 1),
        job.word.eq(front.operand(name, "fmt")),
        job.addend.eq(front.flags[kind.flags.index("add")]),
    ]
