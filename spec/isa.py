"""The instruction set: one table from which encoder, decoder, disassembler, RTL layouts, manual and
test strategies derive.

A program is a list of 32-bit words. Word 0 of an instruction is

    [3:0] opcode (unit)   [7:4] function   [13:8] wait   [19:14] release   [31:20] flags

`wait` and `release` hold one bit per unit (bit i is unit i of `Unit`, a unit's own bit is 0). An
instruction starts when each unit it waits on has released one token to it, and releases one token
to each unit named when its last result is visible. Tokens are counted; a unit works in order.

Each further word is an operand: `[31:27] register, [26:0] signed immediate`, value = register +
immediate, or a raw 32-bit constant. SYS scalar instructions run in the dispatcher, in program
order, and never wait; all others go to the queue of their unit with their operands resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from flightllm.spec.errors import InputError, VerifyError

__all__ = [
    "INSTRUCTIONS", "Instruction", "LOOP_DEPTH", "Operand", "QUEUE_DEPTH", "Register", "Unit",
    "UNITS", "by_name", "find", "verify_table",
]  # fmt: skip


class Unit(IntEnum):
    """The units that instructions are dispatched to; the value is the opcode."""

    LD = 0
    ST = 1
    MM = 2
    MV = 3
    MISC = 4
    SYS = 5


UNITS = tuple(Unit)


class Register(IntEnum):
    """Registers with a fixed meaning; the others are the program's own. Register 0 reads 0."""

    ZERO = 0
    POS = 1
    """Tokens already in the KV cache."""
    NTOK = 2
    """Tokens of this tile, 1 to prefill_tile."""
    STEPS = 3
    """Tokens to decode in this run."""
    LOGITS = 4
    """Tokens of this tile, counted from its end, whose logits are wanted."""


REGISTERS = 32
REGISTER_BITS = 5
FLAG_BITS = 12
IMMEDIATE_BITS = 27
LOOP_DEPTH = 6
"""Loops inside each other at most."""
QUEUE_DEPTH = 16
"""Instructions that wait for a unit at most; then the dispatcher waits."""


@dataclass(frozen=True)
class Operand:
    """One operand word. `raw` operands are float32 constants, the others register + immediate."""

    name: str
    doc: str
    raw: bool = False


@dataclass(frozen=True)
class Instruction:
    """One instruction: its place in the encoding, its operands and what it does.

    `flags` are one-bit names from bit 20 up; with `writes_register` bits [24:20] name the
    destination register instead. `scalar` instructions run in the dispatcher.
    """

    name: str
    unit: Unit
    function: int
    operands: tuple[Operand, ...]
    doc: str
    flags: tuple[str, ...] = ()
    scalar: bool = False
    writes_register: bool = False

    @property
    def words(self) -> int:
        """Length in 32-bit words."""
        return 1 + len(self.operands)


def _ops(text: str) -> tuple[Operand, ...]:
    """Operands from lines `name: doc`; a name with a leading `=` is a raw float32 constant."""
    out = []
    for line in text.strip().splitlines():
        name, doc = line.strip().split(":", 1)
        out.append(Operand(name.lstrip("="), doc.strip(), raw=name.startswith("=")))
    return tuple(out)


_MATRIX = """
    rows: rows of the matrix on this core
    kgroups: groups (or 32-token blocks) along the reduction
    fmt: matrix format word (see Matrix formats)
    first: first 32-token block, for cyclic and whole formats
    start: channel of block 0, for cyclic formats (taken modulo the core's channels)
"""

_LINEAR_TAIL = f"""
    {_MATRIX.strip()}
    emit: F address for the second section's values (fmt second = emit)
    table: parameter address of the 16-entry code table (fmt table = 1)
"""

_LINEAR_DOC = """\
for v in vectors: for r in rows:
    acc = +0                                     # or integer 0 when the format has no scale
    for g in kgroups:
        isum = sum(level[r, g, k] * A[src + v*src_stride + g*G + k] for k in range(G))
        acc = acc + float(isum) * scale[r, g]    # minima: t = isum*scale + asum*minimum first
    y = acc * F[scale + v*scale_stride]
    F[dst + v*dst_stride + r] = y + F[add + ...] if add else y
Takes the matrix from the weight FIFO, where LD.stream with the same operands put it."""

INSTRUCTIONS: tuple[Instruction, ...] = (
    # ------------------------------------------------------------------------------------ LD
    Instruction("ld.nop", Unit.LD, 0, (), "Does nothing but wait and release."),
    Instruction("ld.stream", Unit.LD, 1, _ops(f"""
        addr: matrix address in each channel, 64-byte units
        {_MATRIX.strip()}
        """), """\
Each channel reads its share of the matrix, in storage order, into its weight FIFO.
Back-pressure of the FIFO is the only coupling to MM and MV: prefetch runs across operators."""),
    Instruction("ld.vec", Unit.LD, 2, _ops("""
        addr: address of row 0 in each channel, 64-byte units
        dst: F address
        n: elements of a row
        count: rows
        mstride: distance of rows in memory, 64-byte units
        dstride: distance of rows in F, words
        """), """\
for i in range(count): F[dst + i*dstride :][:n] = spread row at addr + i*mstride
Elements are float32 words, or float16 when `half`, converted exactly.""", flags=("half",)),
    Instruction("ld.gather", Unit.LD, 3, _ops("""
        addr: address of table row 0 in each channel, 64-byte units
        dst: F address
        n: elements of a row
        count: rows
        mstride: distance of table rows in memory, 64-byte units
        dstride: distance of rows in F, words
        index: F address of `count` row numbers (int32)
        istride: distance of row numbers in F, words
        """), """\
for i in range(count): F[dst + i*dstride :][:n] = spread row at addr + F[index + i*istride]*mstride
Embedding look-up.""", flags=("half",)),
    # ------------------------------------------------------------------------------------ ST
    Instruction("st.nop", Unit.ST, 0, (), "Does nothing but wait and release."),
    Instruction("st.vec", Unit.ST, 1, _ops("""
        addr: address of row 0 in each channel, 64-byte units
        src: F address
        n: elements of a row
        count: rows
        mstride: distance of rows in memory, 64-byte units
        sstride: distance of rows in F, words
        """), "for i in range(count): spread row at addr + i*mstride = F[src + i*sstride :][:n]"),
    Instruction("st.keys", Unit.ST, 2, _ops("""
        addr: K region of head 0, 64-byte units
        hstride: distance of heads in memory, 64-byte units
        heads: KV heads of this core
        fmt: the K format (cyclic); its group is the padded head size
        pos: position of the first token
        count: tokens
        codes: A address of the levels, heads `group` apart
        codes1: distance of tokens in A
        kscale: F address of the K scales, one a head
        vscale: F address of the V scales, one a head
        scale1: distance of tokens in F
        start: channel of block 0 of head 0; head h starts at start + h
        """), """\
Appends K: for each token and head, its codes into row pos % 32 of 32-token block pos // 32, its
K scale and V scale (fp16) into the block's two header sections. Byte strobes, nothing is read."""),
    Instruction("st.values", Unit.ST, 3, _ops("""
        addr: V region of head 0, 64-byte units
        hstride: distance of heads in memory, 64-byte units
        heads: KV heads of this core
        rows: head size
        fmt: the V format (whole, no scale)
        pos: position of the first token
        count: tokens
        codes: A address of the levels
        codes1: distance of tokens in A
        codes2: distance of heads in A
        """), """\
Appends V, transposed: code of row d goes to column pos % 32 of block pos // 32, by byte
strobes."""),
    # ------------------------------------------------------------------------------------ MM, MV
    Instruction("mm.nop", Unit.MM, 0, (), "Does nothing but wait and release."),
    Instruction("mm.linear", Unit.MM, 1, _ops(f"""
        src: A address of vector (0, 0)
        src1: distance of tokens in A
        src2: distance of heads in A
        scale: F address of the scale of vector (0, 0)
        scale1: distance of tokens
        scale2: distance of heads
        dst: F address of row 0 of vector (0, 0)
        dst1: distance of tokens
        dst2: distance of heads
        add: F address of the addend of token 0
        add1: distance of tokens
        n1: tokens
        n2: heads
        {_LINEAR_TAIL.strip()}
        """), _LINEAR_DOC + " Vectors are (token, head) pairs.", flags=("add",)),
    Instruction("mv.nop", Unit.MV, 0, (), "Does nothing but wait and release."),
    Instruction("mv.linear", Unit.MV, 1, _ops(f"""
        src: A address of vector 0
        src2: distance of heads in A
        scale: F address of the scale of vector 0
        scale2: distance of heads
        dst: F address of row 0 of vector 0
        dst2: distance of heads
        add: F address of the addend
        n2: heads, 1 to mv_vectors
        {_LINEAR_TAIL.strip()}
        """), _LINEAR_DOC, flags=("add",)),
    # ------------------------------------------------------------------------------------ MISC
    Instruction("misc.nop", Unit.MISC, 0, (), "Does nothing but wait and release."),
    Instruction("misc.add", Unit.MISC, 1, _ops("""
        a: F address
        a1: distance of rows
        b: F address
        b1: distance of rows
        dst: F address
        dst1: distance of rows
        n: elements of a row
        n1: rows
        """), "F[dst + i*dst1 + j] = F[a + i*a1 + j] + F[b + i*b1 + j]"),
    Instruction("misc.stat", Unit.MISC, 2, _ops("""
        src: F address
        src1: distance of rows
        n: elements of a row on this core
        n1: rows
        gain: F address of the gains (norm)
        sums: F address of the 16-element sums of squares (norm)
        sums1: distance of rows
        amax: F address of the absolute maximum
        amax1: distance of rows
        """), """\
F[amax + i*amax1] = max |F[src + i*src1 + j]|; with `norm` of |x * gain|, and
F[sums + i*sums1 + b] = adjacent-pair sum of x*x over elements 16b .. 16b+15 (missing ones +0).""",
        flags=("norm",)),
    Instruction("misc.quant", Unit.MISC, 3, _ops("""
        src: F address
        src1: distance of rows
        n: elements of a row on this core
        n1: rows
        gain: F address of the gains (norm)
        sums: F address of the whole row's 16-element sums of squares (norm)
        sums1: distance of rows
        blocks: number of those sums
        amax: F address of the absolute maxima
        amax1: distance of rows
        parts: number of those maxima, one a core
        dst: A address of this core's slice
        dst1: distance of rows
        pad: bytes to write, n rounded up; the rest is 0
        scale: F address of the scales, one a row
        =alpha: 1/127
        =inv_n: 1/row length (norm)
        =eps: norm epsilon (norm)
        """), """\
a = max of the maxima; q = rint(x * (recip(max(a, 2^-64)) * 127)), x * gain for x with `norm`;
scale = a * alpha, with `norm` (a * alpha) * rsqrt(REDUCE(sums) * inv_n + eps).""",
        flags=("norm",)),
    Instruction("misc.headq", Unit.MISC, 4, _ops("""
        src: F address
        src1: distance of tokens
        heads: heads
        size: head size
        n1: tokens
        dst: A address
        dst1: distance of tokens
        pad: distance of heads in A, at least size; the rest is 0
        rope: F address of token 0's cosines (size/2) and sines (size/2)
        rope1: distance of tokens
        scale: F address of the scales, one a head
        scale1: distance of tokens
        =alpha: factor from absolute maximum to scale
        """), """\
For each token and head: rotate adjacent pairs (`rope`), a = max |x|, levels
rint(x * (recip(max(a, 2^-64)) * Q)), Q = 7 with `nibble` else 127; scale = a * alpha, rounded to
fp16 with `half`.""", flags=("rope", "nibble", "half")),
    Instruction("misc.softmax", Unit.MISC, 5, _ops("""
        src: F address of the scores of vector (0, 0)
        src1: distance of tokens
        src2: distance of heads
        vscale: F address of the V scales
        dst: A address of the probabilities
        dst1: distance of tokens
        dst2: distance of heads
        scale: F address of the output factors
        scale1: distance of tokens
        scale2: distance of heads
        n1: tokens
        n2: heads
        length: columns of scores
        base: position of column 0, a multiple of 32
        pos: position of token 0
        window: sliding window
        """), """\
Softmax of each vector over the positions max(0, p - window + 1) .. p, p = pos + token, which must
all have a column (simulators refuse others, hardware takes them as absent); INT8 probabilities
times V scale, padded with 0 to a multiple of 32; factor = max V scale / 127 / sum."""),
    Instruction("misc.act", Unit.MISC, 6, _ops("""
        a: F address
        a1: distance of rows
        b: F address of the second factor (silu)
        b1: distance of rows
        dst: F address
        dst1: distance of rows
        n: elements of a row on this core
        n1: rows
        amax: F address of the absolute maximum of the result
        amax1: distance of rows
        """), "F[dst] = silu(F[a]) * F[b], relu(F[a]) or gelu(F[a]), and its absolute maximum.",
        flags=("silu", "relu", "gelu")),
    Instruction("misc.topk", Unit.MISC, 7, _ops("""
        src: F address of the logits
        n: logits on this core
        k: how many
        base: id of logit 0
        dst: F address of k (value, id) pairs
        """), "The k largest logits in falling order, the lower id first among equals."),
    Instruction("misc.merge", Unit.MISC, 8, _ops("""
        src: F address of the first list of k pairs
        stride: distance of lists
        parts: lists
        k: pairs of a list
        dst: F address of k pairs
        """), "Merges the cores' top-k lists."),
    # ------------------------------------------------------------------------------------ SYS
    Instruction("sys.nop", Unit.SYS, 0, (), "Does nothing but wait and release."),
    Instruction("sys.gather", Unit.SYS, 1, _ops("""
        addr: address of this core's slice
        n: elements of the slice (F: words, A: bytes)
        n1: rows
        stride: distance of rows
        """), """\
Waits until every core is at its gather, then copies this core's slice to the same addresses of
every other core. In F, or in A with `act`.""", flags=("act",)),
    Instruction("sys.barrier", Unit.SYS, 2, (), "Waits until every core is at its barrier."),
    Instruction("sys.halt", Unit.SYS, 3, (), """\
Waits until every unit is idle, then raises the interrupt; ends the program."""),
    Instruction("sys.loop", Unit.SYS, 4, _ops("count: times the body runs, 0 skips it"), """\
Runs the instructions up to the matching sys.end `count` times. Loops nest up to 6 deep.""",
        scalar=True),
    Instruction("sys.end", Unit.SYS, 5, (), "Ends a loop body.", scalar=True),
    Instruction("sys.add", Unit.SYS, 6, _ops("a: first\nb: second"), "rd = a + b",
        scalar=True, writes_register=True),
    Instruction("sys.sub", Unit.SYS, 7, _ops("a: first\nb: second"), "rd = a - b",
        scalar=True, writes_register=True),
    Instruction("sys.min", Unit.SYS, 8, _ops("a: first\nb: second"), "rd = min(a, b), signed",
        scalar=True, writes_register=True),
    Instruction("sys.max", Unit.SYS, 9, _ops("a: first\nb: second"), "rd = max(a, b), signed",
        scalar=True, writes_register=True),
    Instruction("sys.shr", Unit.SYS, 10, _ops("a: value\nb: bits"), "rd = a >> b, signed",
        scalar=True, writes_register=True),
    Instruction("sys.mul", Unit.SYS, 11, _ops("a: first\nb: second"), "rd = a * b, low 32 bits",
        scalar=True, writes_register=True),
    Instruction("sys.param", Unit.SYS, 12, _ops("index: parameter word"), "rd = parameter[index]",
        scalar=True, writes_register=True),
)  # fmt: skip

_BY_NAME = {entry.name: entry for entry in INSTRUCTIONS}
_BY_CODE = {(int(entry.unit), entry.function): entry for entry in INSTRUCTIONS}


def by_name(name: str) -> Instruction:
    """The instruction called `name`; KeyError when there is none."""
    return _BY_NAME[name]


def find(unit: int, function: int) -> Instruction:
    """The instruction with this encoding; InputError when there is none."""
    entry = _BY_CODE.get((unit, function))
    if entry is None:
        raise InputError(f"opcode {unit} function {function} is no instruction")
    return entry


def verify_table(table: Sequence[Instruction]) -> None:
    """Check that every instruction has a code, a name and bits of its own.

    Raises
    ------
    VerifyError
        Names the instruction whose code, name, operands or flags collide.
    """
    taken: set[object] = set()
    for entry in table:
        code = (entry.unit, entry.function)
        if entry.name in taken or code in taken:
            raise VerifyError(f"{entry.name}: another instruction has its name or its code {code}")
        taken |= {entry.name, code}
        if not 0 <= entry.function < 16:
            raise VerifyError(f"{entry.name}: function {entry.function} does not fit 4 bits")
        if len(entry.flags) > (0 if entry.writes_register else FLAG_BITS):
            raise VerifyError(f"{entry.name}: its flags overlap other bits of word 0")
        names = [operand.name for operand in entry.operands]
        if len(set(names)) < len(names) or len(set(entry.flags)) < len(entry.flags):
            raise VerifyError(f"{entry.name}: two operands or flags share a name")
        if (entry.scalar or entry.writes_register) and entry.unit != Unit.SYS:
            raise VerifyError(f"{entry.name}: only SYS instructions run in the dispatcher")


verify_table(INSTRUCTIONS)
