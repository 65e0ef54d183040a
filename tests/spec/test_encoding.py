"""Encoder, decoder and disassembler, for every instruction of the table."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flightllm.spec.encoding import (
    Op,
    Value,
    bits_float,
    decode,
    disassemble,
    encode,
    float_bits,
)
from flightllm.spec.errors import InputError
from flightllm.spec.isa import INSTRUCTIONS, Instruction, Register, Unit, by_name

LIMIT = 1 << 26
values = st.builds(Value, st.integers(-LIMIT, LIMIT - 1), st.integers(0, 31))
raw_bits = st.integers(0, (1 << 32) - 1)


def ops(entry: Instruction) -> st.SearchStrategy[Op]:
    """Any legal use of one instruction."""
    units = st.frozensets(st.sampled_from([unit for unit in Unit if unit != entry.unit]))
    operands = st.fixed_dictionaries(
        {operand.name: raw_bits if operand.raw else values for operand in entry.operands}
    )
    flags = st.frozensets(st.sampled_from(entry.flags)) if entry.flags else st.just(frozenset())
    rd = st.integers(0, 31) if entry.writes_register else st.just(0)
    return st.builds(Op, st.just(entry), operands, flags, rd, units, units)


any_op = st.one_of(*(ops(entry) for entry in INSTRUCTIONS))


@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.name)
@given(data=st.data())
def test_round_trip(entry: Instruction, data: st.DataObject) -> None:
    op = data.draw(ops(entry))
    words = encode([op])
    assert len(words) == entry.words and all(0 <= word < 1 << 32 for word in words)
    assert decode(words) == [op]


@given(st.lists(any_op, max_size=12))
def test_round_trip_of_programs(program: list[Op]) -> None:
    words = encode(program)
    assert decode(words) == program
    assert encode(decode(words)) == words
    assert disassemble(words).count("\n") == max(1, len(program))


def test_word_zero_is_laid_out_as_documented() -> None:
    op = replace(
        Op.make("misc.headq", "rope", "half", **_numbers("misc.headq")),
        wait=frozenset({Unit.LD, Unit.SYS}), release=frozenset({Unit.MV}),
    )  # fmt: skip
    word = encode([op])[0]
    assert word & 0xF == Unit.MISC
    assert word >> 4 & 0xF == 4
    assert word >> 8 & 0x3F == 0b100001
    assert word >> 14 & 0x3F == 0b001000
    assert word >> 20 == 0b101


def test_operand_words_are_laid_out_as_documented() -> None:
    words = encode([Op.make("sys.add", rd=7, a=Value(-1, 31), b=5)])
    assert words[0] >> 20 == 7
    assert words[1] == 31 << 27 | (1 << 27) - 1
    assert words[2] == 5


def test_raw_operands_are_float32_bits() -> None:
    numbers = {**_numbers("misc.headq"), "alpha": 1 / 127}
    words = encode([Op.make("misc.headq", **numbers)])
    assert words[-1] == struct.unpack("<I", struct.pack("<f", 1 / 127))[0]
    assert bits_float(float_bits(0.1)) == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("value", [LIMIT, -LIMIT - 1, 1 << 40])
@pytest.mark.parametrize(
    "entry", [entry for entry in INSTRUCTIONS if entry.operands], ids=lambda entry: entry.name
)
def test_overflow_names_the_operand(entry: Instruction, value: int) -> None:
    for operand in entry.operands:
        if not operand.raw:
            op = Op.make(entry.name, **{**_numbers(entry.name), operand.name: value})
            with pytest.raises(InputError) as error:
                encode([op])
            assert f"{entry.name}.{operand.name}: {value} does not fit 27 bits" == str(error.value)


def test_impossible_registers_and_units() -> None:
    with pytest.raises(InputError, match=r"sys\.add\.a"):
        encode([Op.make("sys.add", rd=1, a=Value(0, 32), b=0)])
    with pytest.raises(InputError, match="no destination register 32"):
        encode([Op.make("sys.add", rd=32, a=0, b=0)])
    with pytest.raises(InputError, match="no destination register 1"):
        encode([replace(Op.make("mm.nop"), rd=1)])
    for field in ("wait", "release"):
        with pytest.raises(InputError, match=r"mm\.nop: a unit cannot wait for itself"):
            encode([replace(Op.make("mm.nop"), **{field: frozenset({Unit.MM})})])


def test_make_refuses_what_the_table_does_not_have() -> None:
    with pytest.raises(KeyError):
        Op.make("sys.loop")
    with pytest.raises(KeyError):
        Op.make("sys.loop", count=1, more=2)
    with pytest.raises(KeyError):
        Op.make("mm.nop", "fast")


@pytest.mark.parametrize("entry", [e for e in INSTRUCTIONS if e.operands], ids=lambda e: e.name)
def test_truncated_program_is_refused(entry: Instruction) -> None:
    head = encode([Op.make("ld.nop")])
    words = head + encode([Op.make(entry.name, **_numbers(entry.name))])
    for length in range(2, len(words)):
        with pytest.raises(InputError, match=f"word 1: {entry.name} is cut short"):
            decode(words[:length])


@pytest.mark.parametrize("word", [0x6, 0xF, 0x10 * 15, 0xFFFFFFFF])
def test_unknown_opcode_is_refused(word: int) -> None:
    with pytest.raises(InputError, match="word 1: opcode .* is no instruction"):
        decode([0, word])


@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.name)
def test_reserved_bits_are_refused(entry: Instruction) -> None:
    words = encode([Op.make(entry.name, **_numbers(entry.name))])
    used = 5 if entry.writes_register else len(entry.flags)
    for bit in (8 + entry.unit, 14 + entry.unit, *range(20 + used, 32)):
        with pytest.raises(InputError, match=f"word 0: {entry.name} has reserved bits set"):
            decode([words[0] | 1 << bit, *words[1:]])


def test_a_planted_bit_changes_what_is_decoded() -> None:
    """The round trip would see a decoder that ignores a bit."""
    for entry in INSTRUCTIONS:
        words = encode([Op.make(entry.name, **_numbers(entry.name))])
        for at in range(1, len(words)):
            for bit in (0, 26, 27, 31):
                bad = [word ^ (1 << bit if i == at else 0) for i, word in enumerate(words)]
                assert decode(bad) != decode(words), (entry.name, at, bit)


def test_values_show_their_register() -> None:
    shown = [str(Value(*pair)) for pair in ((3, 0), (0, 1), (4, 2), (-4, 9), (0, 5))]
    assert shown == ["3", "pos", "ntok+4", "r9-4", "r5"]
    assert Value(3, 9) + 4 == Value(7, 9)


def _numbers(name: str) -> dict[str, Any]:
    """A distinct number for each operand."""
    numbers: dict[str, Any] = {}
    for index, operand in enumerate(by_name(name).operands):
        numbers[operand.name] = 0.5 + index if operand.raw else 100 + index
    return numbers


def test_disassembly_is_as_committed(golden: Callable[[str, str], None]) -> None:
    program = [
        Op.make("sys.param", rd=6, index=3),
        Op.make("sys.loop", count=Value(0, Register.STEPS)),
        Op.make("sys.loop", count=Value(-1, 6)),
    ]
    for entry in INSTRUCTIONS:
        if entry.name in ("sys.loop", "sys.end", "sys.halt", "sys.param"):
            continue
        op = Op.make(entry.name, *entry.flags, **_numbers(entry.name))
        others = [unit for unit in Unit if unit != entry.unit]
        if not entry.scalar:
            op = replace(op, wait=frozenset(others[:2]), release=frozenset(others[-1:]))
        program.append(replace(op, rd=9) if entry.writes_register else op)
    program += [Op.make("sys.end"), Op.make("sys.end"), Op.make("sys.halt")]
    golden("disassembly.txt", disassemble(encode(program)))
