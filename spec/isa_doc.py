"""The manual of the instruction set, docs/isa.md, from the tables of isa, formats and kvcache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flightllm.spec import formats, isa
from flightllm.spec.formats import ALIGN, BLOCK, MatrixFormat, Second, section_bytes
from flightllm.spec.isa import INSTRUCTIONS, UNITS, Instruction, Register, Unit
from flightllm.spec.kvcache import key_format, value_format

__all__ = ["as_dict", "manual"]

_UNITS = {
    Unit.LD: "reads memory: matrices into the weight FIFOs, vectors into the F buffer",
    Unit.ST: "writes memory: vectors, and the KV cache by byte strobes",
    Unit.MM: "matrix engine on many tokens",
    Unit.MV: "matrix engine on one token (one to `mv_vectors` vectors)",
    Unit.MISC: "special function unit: norms, quantisation, RoPE, softmax, activations, top-k",
    Unit.SYS: "exchange between cores, end of the program; its scalar instructions run in the"
    " dispatcher",
}

_FORMAT_FIELDS = {
    "bits": "width of a code, 2 to 8",
    "group": "elements of the reduction that share a scale, in units of 16",
    "scale": "groups carry an fp16 scale; without it sums stay integers over the whole reduction",
    "second": "second 16-bit section: "
    + ", ".join(f"{kind.value} {kind.name.lower()}" for kind in Second),
    "kept": "N of N:16 sparsity: 0 dense, 1 2:16, 2 4:16, 3 8:16",
    "private": "each row of a pair has a mask of its own",
    "indices": "kept places as 4-bit indices, else as a bitmap",
    "bytewise": "4-bit codes of a pair alternate byte by byte, else code by code",
    "cyclic": "order of K: 32-token chunks go round the channels",
    "whole": "order of V: 32-token blocks over all channels",
    "table": "codes are indices into a 16-entry table of INT8 levels in parameter memory",
}

_INTRODUCTION = f"""\
# Instruction set

What a core executes, word by word. Generated from the tables in `spec/` by `make generate`; the
functional simulator is the living definition, and `docs/number-formats.md` says how each number
is rounded.

## A core

A core has memory channels, a weight FIFO beside each, an A buffer of INT8 (addresses in bytes),
an F buffer of float32 words (addresses in words; int32 stands there as bit patterns), parameter
memory, a dispatcher with {isa.REGISTERS} registers of 32 bits, and six units. Memory addresses
count {ALIGN}-byte units, the same in every channel of a core.

The dispatcher begins at an entry point, "prefill" or "decode", with the registers that the host
set and all others 0. It runs scalar instructions itself, in program order, and hands every
other one, its operands resolved, to the queue of its unit. A unit executes its queue in order;
units overlap.

## Words

A program is a list of 32-bit words. Word 0 of an instruction:

| bits | field | meaning |
|---|---|---|
| [3:0] | opcode | the unit |
| [7:4] | function | which of the unit's instructions |
| [13:8] | wait | bit u: wait for a token from unit u |
| [19:14] | release | bit u: give a token to unit u |
| [31:20] | flags | one bit each from bit 20 up; [24:20] is the register that is written, if any |

Each further word is an operand: `[31:27]` names a register, `[{isa.IMMEDIATE_BITS - 1}:0]` is a
signed immediate, and the value is their sum, wrapped to 32 bits. Raw operands are float32
constants.

## Semaphores

An instruction starts when each unit it waits on has given it a token, and takes one from each.
When its last result is visible it gives one token to each unit it releases. Tokens are counted,
for each pair of units apart; a unit's own bit is 0. They order all accesses to A, F and memory.
The weight FIFOs need none: they hold matrices in the order of the LD stream, and MM and MV take
them in that order, so that LD runs ahead across operators as far as the FIFOs allow. Whatever
order the tokens leave open, the bits of every result are the same."""

_LAYOUT = f"""\
## Vectors in memory

A *spread* vector of n elements lies in the channels in contiguous shares of whole pairs, as
even as pairs allow: channel c holds elements [2(b*c + min(c, e)), 2(b*(c+1) + min(c+1, e))) of
it, with b, e = divmod(ceil(n / 2), channels). A table of vectors has its rows a fixed distance
apart.

## Matrix formats

Rows come in pairs that share an activation. A *pair-group* is one group of the reduction for
one pair of rows; its codes alternate, row 0 then row 1, element by element, in a little-endian
bit stream. {formats.PAIRS} pair-groups make a *chunk*: scales (2 fp16 each), second section (2
values of 16 bits each), sparse index, codes; each section is there as the format says, padded
to {ALIGN} bytes.

- *blocked* (weights): rows spread as above; in a channel for each block of {formats.ROW_BLOCK}
  rows, for each group, for each pair.
- *cyclic* (K): rows are tokens, one group a row; each {BLOCK} rows are one chunk; chunk b lies
  in channel (b + start) mod channels, at slot b // channels.
- *whole* (V): rows spread as above, no header; for each {BLOCK}-token block, for each pair."""

_KV = f"""\
## KV cache

For each layer and KV head of a core there is a K region and a V region in every channel.

K of token t is row t mod {BLOCK} of chunk t // {BLOCK}, in cyclic order with `start` plus the
head's number; the group is the head size rounded up to 16. The chunk's scale section holds the
K scales of its {BLOCK} tokens and its second section, kind *emit*, their V scales: the stream
that makes the scores also brings what the softmax folds into the probabilities. V is
transposed: row d is element d of the head, column t the token, in blocks of {BLOCK} tokens.
4-bit K codes alternate byte by byte and 4-bit V codes code by code, so that no byte holds two
tokens, and ST writes whole bytes by strobes and never reads."""

_HOST = """\
## What host and program agree on

| segment | row | contents |
|---|---|---|
| tokens | 0 | int32 ids of the tile, padded to `prefill_tile` of them, spread |
| logits | i | float32 logits, of this core's share of the vocabulary, of the i-th wanted token |
| topk | s | (float32 logit, int32 id) pairs after decode step s, falling; 0 after prefill |
| kv | - | the KV cache |

Prefill: for each tile of at most `prefill_tile` tokens the host writes the ids, sets POS, NTOK
and LOGITS, and runs "prefill". Decode: it writes one id, sets POS, NTOK = 1, STEPS and LOGITS =
1, and runs "decode", which feeds each step's likeliest id to the next step."""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines)


def _registers() -> str:
    docs = {
        Register.ZERO: "reads 0",
        Register.POS: "tokens already in the KV cache",
        Register.NTOK: "tokens of this tile, 1 to prefill_tile",
        Register.STEPS: "tokens to decode in this run",
        Register.LOGITS: "tokens of this tile, counted from its end, whose logits are wanted",
    }
    rows = [[f"r{place.value}", place.name, docs[place]] for place in Register]
    last = isa.REGISTERS - 1
    rows.append([f"r{len(Register)} to r{last}", "", "the program's own"])
    return _table(["register", "name", "meaning"], rows)


def _units() -> str:
    rows = [[unit.value, unit.name, _UNITS[unit]] for unit in UNITS]
    return _table(["opcode", "unit", "what it does"], rows)


def _format_word() -> str:
    rows, low = [], 0
    for name, width in formats._FIELDS:
        bits = f"[{low + width - 1}:{low}]" if width > 1 else f"[{low}]"
        rows.append([bits, name, _FORMAT_FIELDS[name]])
        low += width
    examples: list[tuple[str, MatrixFormat]] = [
        ("dense w4, groups of 128", MatrixFormat(4, 128)),
        ("8:16 w4, groups of 128", MatrixFormat(4, 128, kept=8)),
        ("w2 with minima, groups of 32", MatrixFormat(2, 32, second=Second.MINIMUM)),
        ("K, heads of 128, INT8", key_format(128, 8)),
        ("K, heads of 128, INT4", key_format(128, 4)),
        ("V, INT8", value_format(8)),
        ("V, INT4", value_format(4)),
    ]
    sizes = []
    for text, fmt in examples:
        parts = "by rows" if fmt.whole else ", ".join(map(str, section_bytes(fmt)))
        sizes.append([text, f"`0x{fmt.word:06x}`", parts])
    return "\n\n".join([
        "The format word, operand `fmt`:",
        _table(["bits", "field", "meaning"], rows),
        "Examples, with the bytes of a chunk's scale, second, index and code sections:",
        _table(["matrix", "word", "section bytes"], sizes),
    ])  # fmt: skip


def _encoding(entry: Instruction) -> str:
    words = "1 word" if entry.words == 1 else f"{entry.words} words"
    parts = [f"word 0 = `0x{entry.unit | entry.function << 4:02x}`", words]
    if entry.scalar:
        parts.append("runs in the dispatcher")
    if entry.writes_register:
        parts.append("register rd in [24:20]")
    for place, name in enumerate(entry.flags):
        parts.append(f"flag `{name}` in [{20 + place}]")
    return ", ".join(parts) + "."


def _instruction(entry: Instruction) -> Iterator[str]:
    yield f"#### {entry.name}"
    yield _encoding(entry)
    if entry.operands:
        yield _table(
            ["word", "operand", "meaning"],
            [
                [place, operand.name, operand.doc + (" (float32)" if operand.raw else "")]
                for place, operand in enumerate(entry.operands, 1)
            ],
        )
    yield f"```\n{entry.doc}\n```"


def manual() -> str:
    """The manual as Markdown."""
    parts = [
        _INTRODUCTION, "## Units", _units(), "## Registers", _registers(), _LAYOUT,
        _format_word(), _KV, _HOST, "## Instructions",
        'A "distance" is the step between neighbours in the buffer or memory of the address.',
    ]  # fmt: skip
    for unit in UNITS:
        parts.append(f"### {unit.name}")
        for entry in INSTRUCTIONS:
            if entry.unit == unit:
                parts += _instruction(entry)
    return "\n\n".join(parts) + "\n"


def as_dict() -> dict[str, Any]:
    """The instruction table as plain values."""
    return {
        "units": {unit.name.lower(): unit.value for unit in UNITS},
        "registers": {register.name.lower(): register.value for register in Register},
        "immediate_bits": isa.IMMEDIATE_BITS,
        "instructions": [
            {
                "name": entry.name, "unit": entry.unit.name.lower(), "function": entry.function,
                "words": entry.words, "flags": list(entry.flags), "scalar": entry.scalar,
                "writes_register": entry.writes_register, "doc": entry.doc,
                "operands": [
                    {"name": o.name, "doc": o.doc, "raw": o.raw} for o in entry.operands
                ],
            }
            for entry in INSTRUCTIONS
        ],
    }  # fmt: skip
